//! The bytes of a boot medium: ISO 9660, El Torito, MBR and GPT, ESP and initramfs, written and read back.
