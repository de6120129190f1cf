//! SHA-256 of many chunks, two at a time.
//!
//! The rounds of one digest wait for each other, so a processor with SHA instructions has time for those of a second one: two take
//! little longer than one. Elsewhere `sha2` computes one after the other.

use std::cmp::Reverse;

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

/// The digests of `pieces`, in their order.
pub fn digests(pieces: &[&[u8]]) -> Vec<Digest> {
    let mut digests = vec![Digest::ZERO; pieces.len()];
    // The longest first: then there is a second one beside nearly all of each.
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|number| Reverse(pieces[*number].len()));
    let mut left = order.into_iter().map(|number| Running::new(number, pieces));
    let mut other = left.next();
    while let Some(mut one) = other.take() {
        let Some(mut two) = left.next() else {
            let number = one.number;
            digests[number] = one.finish();
            break;
        };
        let both = one.blocks.len().min(two.blocks.len());
        one.beside(&mut two, both);
        if one.blocks.is_empty() {
            std::mem::swap(&mut one, &mut two);
        }
        let number = two.number;
        digests[number] = two.finish();
        other = Some(one);
    }
    digests
}

/// A piece whose digest is being computed.
struct Running<'a> {
    number: usize,
    bytes: u64,
    state: State,
    /// What is to come of whole blocks.
    blocks: &'a [Block],
    tail: &'a [u8],
}

impl<'a> Running<'a> {
    fn new(number: usize, pieces: &[&'a [u8]]) -> Self {
        let (blocks, tail) = pieces[number].as_chunks();
        Self {
            number,
            bytes: pieces[number].len() as u64,
            state: START,
            blocks,
            tail,
        }
    }

    /// Goes on with `count` blocks of this piece and of `other`.
    fn beside(&mut self, other: &mut Self, count: usize) {
        let (own, own_rest) = self.blocks.split_at(count);
        let (others, others_rest) = other.blocks.split_at(count);
        if !crate::sys::compress_two([&mut self.state, &mut other.state], [own, others]) {
            compress256(&mut self.state, own);
            compress256(&mut other.state, others);
        }
        (self.blocks, other.blocks) = (own_rest, others_rest);
    }

    /// The digest of it all (padding: FIPS 180-4 §5.1.1).
    fn finish(mut self) -> Digest {
        compress256(&mut self.state, self.blocks);
        let mut last = [[0; BLOCK_BYTES]; 2];
        last[0][..self.tail.len()].copy_from_slice(self.tail);
        last[0][self.tail.len()] = 0x80;
        let used = if self.tail.len() < BLOCK_BYTES - 8 {
            1
        } else {
            2
        };
        last[used - 1][BLOCK_BYTES - 8..].copy_from_slice(&(self.bytes * 8).to_be_bytes());
        compress256(&mut self.state, &last[..used]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Digest(digest)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64 {
    //! Two states over blocks of their own by the SHA extensions (Intel SDM vol. 2: SHA256RNDS2, SHA256MSG1, SHA256MSG2).

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

    /// Rounds `4 * four` to `4 * four + 3`, with the words `w` of the expanded block.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn rounds(lanes: &mut Lanes, four: usize, w: __m128i) {
        let [k0, k1, k2, k3] = [0, 1, 2, 3].map(|at| K[4 * four + at].cast_signed());
        let low = _mm_add_epi32(w, _mm_set_epi32(k3, k2, k1, k0));
        let high = _mm_shuffle_epi32::<0x0e>(low);
        lanes.cdgh = _mm_sha256rnds2_epu32(lanes.cdgh, lanes.abef, low);
        lanes.abef = _mm_sha256rnds2_epu32(lanes.abef, lanes.cdgh, high);
    }

    /// The words of a block.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn words(block: &Block) -> [__m128i; 4] {
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let (halves, _) = block.as_chunks::<8>();
        std::array::from_fn(|at| {
            let low = i64::from_le_bytes(halves[2 * at]);
            let high = i64::from_le_bytes(halves[2 * at + 1]);
            _mm_shuffle_epi8(_mm_set_epi64x(high, low), big_endian)
        })
    }

    /// The next four words of the expansion (FIPS 180-4 §6.2.2, step 1), in the place of the first four of `w`, which begin at `at`.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn expand(w: &mut [__m128i; 4], at: usize) -> __m128i {
        let (w1, w2, w3) = (w[(at + 1) % 4], w[(at + 2) % 4], w[(at + 3) % 4]);
        let sum = _mm_add_epi32(
            _mm_sha256msg1_epu32(w[at], w1),
            _mm_alignr_epi8::<4>(w3, w2),
        );
        w[at] = _mm_sha256msg2_epu32(sum, w3);
        w[at]
    }

    /// Goes on with each state over its blocks, as far as both have some.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    pub(crate) fn compress_two(states: [&mut State; 2], blocks: [&[Block]; 2]) {
        let [one, two] = states;
        let (mut a, mut b) = (Lanes::load(one), Lanes::load(two));
        for (block_a, block_b) in blocks[0].iter().zip(blocks[1]) {
            let (a_before, b_before) = (a, b);
            let (mut w_a, mut w_b) = (words(block_a), words(block_b));
            for four in 0..4 {
                rounds(&mut a, four, w_a[four]);
                rounds(&mut b, four, w_b[four]);
            }
            for four in 4..16 {
                let (next_a, next_b) = (expand(&mut w_a, four % 4), expand(&mut w_b, four % 4));
                rounds(&mut a, four, next_a);
                rounds(&mut b, four, next_b);
            }
            for (lanes, before) in [(&mut a, a_before), (&mut b, b_before)] {
                lanes.abef = _mm_add_epi32(lanes.abef, before.abef);
                lanes.cdgh = _mm_add_epi32(lanes.cdgh, before.cdgh);
            }
        }
        (*one, *two) = (a.store(), b.store());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of all lengths around the borders of blocks, in many orders and numbers.
    #[test]
    fn each_digest_is_sha_256() {
        let bytes: Vec<u8> = (0..20_000_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8)
            .collect();
        let lengths = [
            0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 4096, 4095, 9000,
        ];
        for first in 0..lengths.len() {
            for count in 0..=lengths.len() {
                let pieces: Vec<&[u8]> = (0..count)
                    .map(|at| {
                        let length = lengths[(first + at * 5) % lengths.len()];
                        &bytes[at * 700..at * 700 + length]
                    })
                    .collect();
                let expected: Vec<Digest> = pieces.iter().map(|piece| Digest::of(piece)).collect();
                assert_eq!(digests(&pieces), expected, "{first} {count}");
            }
        }
    }

    #[test]
    fn a_known_digest() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, appendix B.1
        let found = digests(&[b"abc", b"", b"abc"]);
        assert_eq!([found[0].to_string(), found[2].to_string()], [abc, abc]);
    }
}
