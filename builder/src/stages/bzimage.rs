//! A Linux kernel without its own unpacker.
//!
//! In: a bzImage (kernel `Documentation/arch/x86/boot.rst`). Out: the ELF file inside, or that packed as Xen unpacks it
//! quickest: an lz4 legacy frame with the unpacked length behind it. Debian packs its kernel with zstd, on which Xen spends
//! seven times as long as on lz4, and a guest's start as long again.

use std::io::Read as _;

/// The kernel's ELF file is 60 MB; more than this is not one.
const MAX_ELF_BYTES: u64 = 512 << 20;
/// Blocks of an lz4 legacy frame hold up to 8 MiB (lz4_Block_format.md, "Legacy frame").
const BLOCK_BYTES: usize = 8 << 20;
/// Magic number of an lz4 legacy frame, little-endian in the file.
const LZ4_LEGACY: u32 = 0x184C_2102;

/// Why a kernel cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The header is not one.
    #[error("it is no bzImage: {0}")]
    Header(&'static str),
    /// The payload is packed in another way.
    #[error("its payload begins with {found:02x?}, expected zstd (28 b5 2f fd)")]
    Packing {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// The payload is damaged.
    #[error("its payload cannot be unpacked")]
    Payload(#[source] std::io::Error),
}

/// The ELF file inside a bzImage.
///
/// # Errors
/// If `kernel` is not a bzImage with a zstd payload that holds an ELF file.
pub fn unpack(kernel: &[u8]) -> Result<Vec<u8>, KernelError> {
    let word = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(kernel.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return Err(KernelError::Header("there is no `HdrS` at 0x202"));
    }
    let setup_sectors = match kernel.get(0x1f1) {
        Some(0) => 4, // boot.rst: 0 means 4, for the oldest kernels
        Some(n) => usize::from(*n),
        None => return Err(KernelError::Header("it ends within the header")),
    };
    let cut = KernelError::Header("its payload lies outside of the file");
    let start = word(0x248).and_then(|offset| ((setup_sectors + 1) * 512).checked_add(offset));
    let range = start
        .zip(word(0x24c))
        .and_then(|(start, length)| Some(start..start.checked_add(length)?));
    // The last four bytes are the unpacked length, put there by the kernel's build.
    let payload = range
        .and_then(|range| kernel.get(range))
        .and_then(|bytes| bytes.get(..bytes.len().checked_sub(4)?));
    let payload = payload.ok_or(cut)?;
    if !payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(KernelError::Packing {
            found: payload.iter().take(4).copied().collect(),
        });
    }
    let mut decoder = zstd::Decoder::new(payload)
        .map_err(KernelError::Payload)?
        .single_frame();
    decoder.window_log_max(31).map_err(KernelError::Payload)?;
    let mut elf = Vec::new();
    decoder
        .take(MAX_ELF_BYTES)
        .read_to_end(&mut elf)
        .map_err(KernelError::Payload)?;
    if !elf.starts_with(b"\x7fELF") {
        return Err(KernelError::Header("its payload is no ELF file"));
    }
    Ok(elf)
}

/// `elf` as Xen takes it: an lz4 legacy frame, then the unpacked length (32 bits, little-endian).
#[must_use]
pub fn pack_for_xen(elf: &[u8]) -> Vec<u8> {
    let mut out = LZ4_LEGACY.to_le_bytes().to_vec();
    for block in elf.chunks(BLOCK_BYTES) {
        let packed = lz4_flex::block::compress(block);
        out.extend((packed.len() as u32).to_le_bytes()); // a block is 8 MiB at most
        out.extend(packed);
    }
    out.extend((elf.len() as u32).to_le_bytes()); // bounded by MAX_ELF_BYTES
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 512];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&512u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        image.extend(payload);
        image.extend([0; 4]);
        image
    }

    #[test]
    fn the_elf_file_comes_out_and_goes_back_in() {
        let elf = [b"\x7fELF".as_slice(), &vec![7; 9 << 20]].concat();
        let packed = zstd::encode_all(elf.as_slice(), 1).unwrap();
        assert_eq!(unpack(&bzimage(&packed)).unwrap(), elf);

        let frame = pack_for_xen(&elf);
        assert_eq!(frame[..4], [0x02, 0x21, 0x4c, 0x18]);
        assert_eq!(frame[frame.len() - 4..], (elf.len() as u32).to_le_bytes());
        let first = u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
        assert_eq!(
            lz4_flex::block::decompress(&frame[8..8 + first], BLOCK_BYTES).unwrap(),
            elf[..BLOCK_BYTES]
        );
    }

    #[test]
    fn hostile_headers_are_refused() {
        let good = bzimage(&zstd::encode_all(b"\x7fELF...".as_slice(), 1).unwrap());
        for cut in [0, 0x1f1, 0x205, 0x24e, 1500, good.len() - 1] {
            assert!(unpack(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut far = good.clone();
        far[0x248..0x250].fill(0xff);
        assert!(matches!(unpack(&far), Err(KernelError::Header(_))));
        assert!(matches!(
            unpack(&bzimage(b"gzip")),
            Err(KernelError::Packing { .. })
        ));
        assert!(
            unpack(&bzimage(
                &zstd::encode_all(b"no elf".as_slice(), 1).unwrap()
            ))
            .is_err()
        );
    }
}
