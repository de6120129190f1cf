//! Guest definitions: loading, validation, rendering for Xen and QEMU, and the programs that run guests.
