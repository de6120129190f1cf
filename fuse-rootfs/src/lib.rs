//! The live system's root: the /init program that finds its medium, stacks the layers and hands over.
