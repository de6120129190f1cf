//! What a recorded run left out of the files it read, and the next one may read.
//!
//! Two boots do not read the same blocks: what is mapped into memory is read around the address that is touched first, and a guest's
//! read-ahead depends on who was faster. A block that is missing costs a round trip, or two; most such blocks lie in a small hole
//! between what was read. So holes are filled, behind all that was recorded: it is what is wanted least.

use super::bundles::Plan;
use super::erofs::Extent;
use crate::format::BLOCK_BYTES;

/// Longest hole that is filled (16 KiB, which the client's mounts read ahead until the house is ready), in blocks.
const HOLE_BLOCKS: u64 = 4;
/// Of a piece of a file of which so many parts of ten were read, the rest belongs to it as well.
const MOSTLY_READ: u64 = 7;

/// Adds what lies in small holes of `layer` between blocks of `plan` that belong to one piece of a file, and the rest of what was
/// mostly read. `extents`: the pieces, ascending and disjoint. `false` when the bundle is full.
pub(super) fn round_up(plan: &mut Plan, layer: u16, extents: &[Extent]) -> bool {
    let mut read: Vec<u64> = plan
        .blocks()
        .filter(|&(of, _)| of == layer)
        .map(|(_, block)| block)
        .collect();
    read.sort_unstable();
    let size = u64::from(BLOCK_BYTES);
    let mut rest = &read[..];
    for extent in extents {
        let (start, end) = (extent.start.div_ceil(size), extent.end.div_ceil(size));
        rest = &rest[rest.partition_point(|&block| block < start)..];
        let (here, behind) = rest.split_at(rest.partition_point(|&block| block < end));
        rest = behind;
        let (Some(&first), Some(&last)) = (here.first(), here.last()) else {
            continue;
        };
        let is_mostly_read = here.len() as u64 * 10 >= (end - start) * MOSTLY_READ;
        let holes = here.windows(2).map(|pair| pair[0] + 1..pair[1]);
        let ends = [start..first, last + 1..end];
        for hole in holes.chain(ends) {
            let is_small = hole.end - hole.start <= HOLE_BLOCKS;
            if (is_small || is_mostly_read) && !hole.clone().all(|block| plan.push(layer, block)) {
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(read: &[u64], extents: &[(u64, u64)]) -> Vec<u64> {
        let size = u64::from(BLOCK_BYTES);
        let extents: Vec<Extent> = extents
            .iter()
            .map(|&(start, end)| Extent {
                start: start * size,
                end: end * size - 5,
            })
            .collect();
        let mut plan = Plan::default();
        for &block in read {
            plan.push(1, block);
        }
        plan.push(0, 1); // of another layer
        assert!(round_up(&mut plan, 1, &extents));
        let of_layer = plan.blocks().filter(|&(layer, _)| layer == 1);
        of_layer.map(|(_, block)| block).collect()
    }

    #[test]
    fn small_holes_are_filled_behind_what_was_read() {
        // The hole of 4, and the 4 up to the end; not the 5, nor what lies before by more.
        let found = rounded(&[130, 125, 136], &[(100, 141)]);
        let mut expected = vec![130, 125, 136];
        expected.extend(126..130);
        expected.extend(137..141);
        assert_eq!(found[..3], expected[..3]);
        assert!(
            found[3..].iter().all(|block| !(131..136).contains(block)),
            "{found:?}"
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_mostly_read_becomes_whole() {
        let read: Vec<u64> = (0..35).chain(65..100).collect();
        assert_eq!(rounded(&read, &[(0, 100), (200, 300)]).len(), 100);
        let less: Vec<u64> = (0..34).chain(65..100).collect();
        assert_eq!(rounded(&less, &[(0, 100)]).len(), 69);
    }

    #[test]
    fn files_that_were_not_read_stay_out() {
        assert_eq!(rounded(&[20], &[(0, 10), (10, 15), (25, 30)]), [20]);
        assert_eq!(rounded(&[9, 10], &[(0, 10), (10, 12)]), [9, 10, 11]);
    }
}
