//! The block device the ISO writer writes on: any `Write`, in one pass.
//!
//! The writer emits every block once, in ascending order, so no `Seek` is asked of the output and a caller can digest
//! the image while it is written. Corrections to the first blocks are made here, as they pass.

use std::io::{self, Write};

use hadris_io::{Error, ErrorKind, ErrorType};
use hadris_storage::sync::BlockDevice;
use hadris_storage::{BlockIndex, BlockSize};

/// Bytes of the image's beginning that are kept for reading back: system area, volume descriptors.
pub(super) const HEAD_BYTES: usize = 64 * 1024;

/// Bytes to put over the image at `offset`, which must lie inside the first [`HEAD_BYTES`].
pub(super) struct Patch {
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// A device that accepts blocks in ascending order and passes them on.
pub(super) struct StreamDevice<W> {
    out: W,
    written_bytes: u64,
    patches: Vec<Patch>,
    head: Vec<u8>,
}

impl<W: Write> StreamDevice<W> {
    pub(super) fn new(out: W, patches: Vec<Patch>) -> Self {
        Self {
            out,
            written_bytes: 0,
            patches,
            head: Vec::new(),
        }
    }

    /// The number of bytes written and the first of them, at most [`HEAD_BYTES`].
    pub(super) fn finish(self) -> (u64, Vec<u8>) {
        (self.written_bytes, self.head)
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written_bytes < HEAD_BYTES as u64 {
            let mut copy = bytes.to_vec();
            for patch in &self.patches {
                put(&mut copy, self.written_bytes, patch);
            }
            let take = copy.len().min(HEAD_BYTES - self.head.len());
            self.head.extend_from_slice(&copy[..take]);
            self.out.write_all(&copy)?;
        } else {
            self.out.write_all(bytes)?;
        }
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Copies the part of `patch` that falls into `chunk`, which begins at byte `at` of the image.
fn put(chunk: &mut [u8], at: u64, patch: &Patch) {
    let start = patch.offset.max(at);
    let end = (patch.offset + patch.bytes.len() as u64).min(at + chunk.len() as u64);
    if start < end {
        let from = (start - patch.offset) as usize;
        let len = (end - start) as usize;
        chunk[(start - at) as usize..][..len].copy_from_slice(&patch.bytes[from..from + len]);
    }
}

impl<W> ErrorType for StreamDevice<W> {
    type Error = io::Error;
}

impl<W: Write> BlockDevice for StreamDevice<W> {
    fn block_size(&self) -> BlockSize {
        // Not zero.
        BlockSize::new(2048).expect("2048 is a block size")
    }

    fn block_count(&self) -> u64 {
        self.written_bytes / 2048
    }

    fn max_block_count(&self) -> u64 {
        u64::MAX / 2048
    }

    fn writable(&self) -> bool {
        true
    }

    fn read_blocks(&mut self, _first: BlockIndex, _buf: &mut [u8]) -> Result<(), Error<io::Error>> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "a medium that is being written cannot be read",
        ))
    }

    fn write_blocks(&mut self, first: BlockIndex, buf: &[u8]) -> Result<(), Error<io::Error>> {
        let at = first.get() * 2048;
        if at < self.written_bytes {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "blocks of the medium came out of order",
            ));
        }
        let fail = |e| Error::device(e, "cannot write to the medium");
        while self.written_bytes < at {
            let gap = (at - self.written_bytes).min(2048) as usize;
            self.push(&[0; 2048][..gap]).map_err(fail)?;
        }
        self.push(buf).map_err(fail)
    }

    fn flush(&mut self) -> Result<(), Error<io::Error>> {
        self.out
            .flush()
            .map_err(|e| Error::device(e, "cannot write to the medium"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_fall_into_the_stream_wherever_it_is_cut() {
        let patch = || {
            vec![Patch {
                offset: 2046,
                bytes: vec![1, 2, 3, 4],
            }]
        };
        let mut out = Vec::new();
        let mut device = StreamDevice::new(&mut out, patch());
        device.write_blocks(BlockIndex::new(0), &[0; 2048]).unwrap();
        device.write_blocks(BlockIndex::new(2), &[9; 2048]).unwrap();
        assert!(
            device.write_blocks(BlockIndex::new(1), &[9; 2048]).is_err(),
            "backwards"
        );
        let (bytes, head) = device.finish();
        assert_eq!((bytes, head.len()), (6144, 6144));
        assert_eq!(out, head);
        assert_eq!(out[2044..2052], [0, 0, 1, 2, 3, 4, 0, 0]);
        assert_eq!(out[4096], 9);
    }
}
