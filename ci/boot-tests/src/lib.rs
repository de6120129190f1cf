//! Boots built images in QEMU and watches them come up.
