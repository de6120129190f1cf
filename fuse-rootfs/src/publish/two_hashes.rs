//! SHA-256 of an image and of its chunks at once.
//!
//! Both are wanted, and a chunk begins at a border of 64-byte blocks in the image, so both digest the same blocks. The expansion of
//! a block is the same for both, and the rounds of the two wait for the processor in turns: on one with SHA instructions two
//! digests take the time of one and a tenth. Elsewhere `sha2` computes one after the other. In: the image's bytes in order.

use sha2::block_api::compress256;

use crate::format::Digest;

pub(crate) type State = [u32; 8];
pub(crate) type Block = [u8; BLOCK_BYTES];

const BLOCK_BYTES: usize = 64;
/// The state before the first block (FIPS 180-4 §5.3.3).
const START: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The digest of an image, as far as it was seen.
pub struct ImageHash {
    state: State,
    /// The last bytes, not yet a block: `bytes % 64` of them.
    tail: Block,
    bytes: u64,
}

impl ImageHash {
    /// Nothing seen yet.
    pub const fn new() -> Self {
        Self {
            state: START,
            tail: [0; BLOCK_BYTES],
            bytes: 0,
        }
    }

    /// How many bytes were seen.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    const fn tail_bytes(&self) -> usize {
        (self.bytes % BLOCK_BYTES as u64) as usize
    }

    /// Goes on with `bytes`.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let kept = self.tail_bytes();
        if kept > 0 {
            let (more, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - kept));
            self.tail[kept..kept + more.len()].copy_from_slice(more);
            self.bytes += more.len() as u64;
            if self.tail_bytes() > 0 {
                return;
            }
            compress256(&mut self.state, &[self.tail]);
            bytes = rest;
        }
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.tail[..rest.len()].copy_from_slice(rest);
        self.bytes += bytes.len() as u64;
    }

    /// Goes on with `bytes` and returns the digest of these alone.
    pub fn update_with_own(&mut self, bytes: &[u8]) -> Digest {
        if self.tail_bytes() > 0 {
            self.update(bytes);
            return Digest::of(bytes);
        }
        let mut own = START;
        let (blocks, rest) = bytes.as_chunks();
        if !crate::sys::compress_both(&mut self.state, &mut own, blocks) {
            compress256(&mut self.state, blocks);
            compress256(&mut own, blocks);
        }
        self.tail[..rest.len()].copy_from_slice(rest);
        self.bytes += bytes.len() as u64;
        ended(own, rest, bytes.len() as u64)
    }

    /// The digest of all.
    pub fn finish(self) -> Digest {
        ended(self.state, &self.tail[..self.tail_bytes()], self.bytes)
    }
}

/// The digest of `bytes` bytes, after all whole blocks of them `state`, the rest of them `tail` (FIPS 180-4 §5.1.1).
fn ended(mut state: State, tail: &[u8], bytes: u64) -> Digest {
    let mut last = [[0; BLOCK_BYTES]; 2];
    last[0][..tail.len()].copy_from_slice(tail);
    last[0][tail.len()] = 0x80;
    let used = if tail.len() < BLOCK_BYTES - 8 { 1 } else { 2 };
    last[used - 1][BLOCK_BYTES - 8..].copy_from_slice(&(bytes * 8).to_be_bytes());
    compress256(&mut state, &last[..used]);
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    Digest(digest)
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64 {
    //! Two states over the same blocks by the SHA extensions (Intel SDM vol. 2: SHA256RNDS2, SHA256MSG1, SHA256MSG2).

    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32,
    };

    use super::{Block, State};

    /// FIPS 180-4 §4.2.2.
    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ];

    /// A state as the instructions want it: words a b e f and c d g h, the first in the highest lane.
    #[derive(Clone, Copy)]
    struct Lanes {
        abef: __m128i,
        cdgh: __m128i,
    }

    impl Lanes {
        #[inline]
        #[target_feature(enable = "sha,sse4.1")]
        fn load(state: &State) -> Self {
            let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
            Self {
                abef: _mm_set_epi32(a, b, e, f),
                cdgh: _mm_set_epi32(c, d, g, h),
            }
        }

        #[inline]
        #[target_feature(enable = "sha,sse4.1")]
        fn store(self) -> State {
            [
                _mm_extract_epi32::<3>(self.abef),
                _mm_extract_epi32::<2>(self.abef),
                _mm_extract_epi32::<3>(self.cdgh),
                _mm_extract_epi32::<2>(self.cdgh),
                _mm_extract_epi32::<1>(self.abef),
                _mm_extract_epi32::<0>(self.abef),
                _mm_extract_epi32::<1>(self.cdgh),
                _mm_extract_epi32::<0>(self.cdgh),
            ]
            .map(i32::cast_unsigned)
        }
    }

    /// Rounds `4 * four` to `4 * four + 3` of both, with the words `w` of the expanded block.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn rounds(one: &mut Lanes, other: &mut Lanes, four: usize, w: __m128i) {
        let [k0, k1, k2, k3] = [0, 1, 2, 3].map(|at| K[4 * four + at].cast_signed());
        let low = _mm_add_epi32(w, _mm_set_epi32(k3, k2, k1, k0));
        let high = _mm_shuffle_epi32::<0x0e>(low);
        one.cdgh = _mm_sha256rnds2_epu32(one.cdgh, one.abef, low);
        other.cdgh = _mm_sha256rnds2_epu32(other.cdgh, other.abef, low);
        one.abef = _mm_sha256rnds2_epu32(one.abef, one.cdgh, high);
        other.abef = _mm_sha256rnds2_epu32(other.abef, other.cdgh, high);
    }

    /// Goes on with both states over all of `blocks`.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    pub(crate) fn compress_both(one: &mut State, other: &mut State, blocks: &[Block]) {
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let (mut a, mut b) = (Lanes::load(one), Lanes::load(other));
        for block in blocks {
            let (a_before, b_before) = (a, b);
            let (halves, _) = block.as_chunks::<8>();
            let mut w: [__m128i; 4] = std::array::from_fn(|at| {
                let low = i64::from_le_bytes(halves[2 * at]);
                let high = i64::from_le_bytes(halves[2 * at + 1]);
                _mm_shuffle_epi8(_mm_set_epi64x(high, low), big_endian)
            });
            for (four, w) in w.iter().enumerate() {
                rounds(&mut a, &mut b, four, *w);
            }
            for four in 4..16 {
                let at = four % 4;
                let (w1, w2, w3) = (w[(at + 1) % 4], w[(at + 2) % 4], w[(at + 3) % 4]);
                let sum = _mm_add_epi32(
                    _mm_sha256msg1_epu32(w[at], w1),
                    _mm_alignr_epi8::<4>(w3, w2),
                );
                w[at] = _mm_sha256msg2_epu32(sum, w3);
                rounds(&mut a, &mut b, four, w[at]);
            }
            for (lanes, before) in [(&mut a, a_before), (&mut b, b_before)] {
                lanes.abef = _mm_add_epi32(lanes.abef, before.abef);
                lanes.cdgh = _mm_add_epi32(lanes.cdgh, before.cdgh);
            }
        }
        (*one, *other) = (a.store(), b.store());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of all lengths around the borders of blocks, at all places relative to them.
    #[test]
    fn both_digests_are_sha_256() {
        let bytes: Vec<u8> = (0..80_000_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8)
            .collect();
        let lengths = [0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 4096, 4095];
        for first in lengths {
            for second in lengths {
                let mut image = ImageHash::new();
                let mut at = 0;
                for bytes_of_one in [first, second, 640, second, first, 8192] {
                    let piece = &bytes[at..at + bytes_of_one];
                    assert_eq!(image.update_with_own(piece), Digest::of(piece));
                    at += bytes_of_one;
                    image.update(&bytes[at..at + second]);
                    at += second;
                    assert_eq!(image.bytes(), at as u64);
                }
                assert_eq!(image.finish(), Digest::of(&bytes[..at]), "{first} {second}");
            }
        }
        assert_eq!(ImageHash::new().finish(), Digest::of(b""));
    }

    #[test]
    fn a_known_digest() {
        let mut image = ImageHash::new();
        let own = image.update_with_own(b"abc"); // FIPS 180-2, appendix B.1
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(own.to_string(), abc);
        assert_eq!(image.finish().to_string(), abc);
    }
}
