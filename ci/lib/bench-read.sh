#!/usr/bin/env bash
# ci/bench read: how fast a streamed image reads once it is there, and how fast its chunks are unpacked, next to a squashfs of the
# same tree mounted by the kernel. Warm page cache of what is compared. As root, for mounts. What is read again is read ROUNDS (5)
# times, in turns; each row is the fastest round, since others' work on the machine only ever adds to it.
#
# The demo's base layer, published with zstd-19 (LEVEL=N for another). A file of a mount is read three times: from the store (cold),
# from the daemon's decoded cache with the kernel's page cache dropped (what is asked of us), and as the kernel keeps it.
# Trees are read by `tar`, single-threaded, from an EROFS mounted from the mount's file and from the squashfs in a loop device.
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=()
for pair in mksquashfs:squashfs-tools xorriso:xorriso perl:perl-base; do command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}"); done
if [ ${#missing[@]} != 0 ]; then
  apt-get -qq update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >&2
fi
kept=${BENCH_DIR:+yes}
mkdir -p "${BENCH_DIR:=$(mktemp -d)}"
dir=$(realpath "$BENCH_DIR")
daemon=
cleanup() {
  for at in eroot sroot packed mount; do umount -q "$dir/$at" 2>/dev/null || true; done
  [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
  [ "${kept:-}" = yes ] || rm -rf "$dir"
}
trap cleanup EXIT
executables() { cargo build --release "$@" --message-format json-render-diagnostics | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'; }
gasthaus=${GASTHAUS:-$(executables --workspace --bin gasthaus | tail -1)}
read=${BENCH_READ:-$(executables -p fuse-rootfs --example read | grep '/read$')}

mkdir -p "$dir"/{packed,mount,eroot,sroot}
if [ ! -e "$dir/base.squashfs" ]; then
  iso=${GASTHAUS_ISO:-$dir/first/demo.iso}
  [ -e "$iso" ] || "$gasthaus" build --out "$dir/first" >&2
  rm -rf "$dir/iso"
  xorriso -report_about FAILURE -osirrox on -indev "$iso" -extract /gasthaus "$dir/iso"
  mount -t erofs -o ro "$dir"/iso/*/base.erofs "$dir/packed"
  "$gasthaus" --quiet tools mkfs.erofs -E^inline_data -T1 --quiet "$dir/base.erofs.new" "$dir/packed" >&2
  mksquashfs "$dir/packed" "$dir/base.squashfs.new" -comp zstd -b 128K -quiet -no-progress -noappend >&2
  umount "$dir/packed"
  mv "$dir/base.erofs.new" "$dir/base.erofs"
  mv "$dir/base.squashfs.new" "$dir/base.squashfs"
fi
if [ ! -e "$dir/store/head" ]; then
  rm -f "$dir"/k.*
  "$gasthaus" --quiet key new "$dir/k.key" --no-password >/dev/null
  "$gasthaus" --quiet publish "$dir/base.erofs" --to "$dir/store" --key "$dir/k.key" --level "${LEVEL:-19}" >/dev/null
fi

seconds() { # seconds COMMAND…: its wall time
  local began=$EPOCHREALTIME
  "$@" >/dev/null
  awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'
}
row() { awk -v w="$1" -v b="$2" -v s="$3" 'BEGIN { printf "| %s | %.0f | %.2f | %.0f | %s |\n", w, b / 1e6, s, b / 1e6 / s, "" }'; }
drop() { sync && echo 1 >/proc/sys/vm/drop_caches; }
tree() { tar -C "$1" --one-file-system -cf - . | cat >/dev/null; }
warm() { find "$dir/store" "$dir/base.squashfs" -type f -exec cat {} + >/dev/null; }

warm
echo "| read | MB | s | MB/s | MB/s per processor second |"
echo "|---|--:|--:|--:|--:|"
"$read" "$dir/store" "$dir/k.pub"

"$gasthaus" --quiet mount --key "$dir/k.pub" --ram-mib 4096 "$dir/store" "$dir/mount" >/dev/null &
daemon=$!
for _ in $(seq 200); do [ -e "$dir/mount/base.erofs" ] && break || sleep 0.05; done
bytes=$(stat -c %s "$dir/base.erofs") rounds=$(seq "${ROUNDS:-5}")
file() { dd if="$dir/mount/base.erofs" of=/dev/null bs=1M status=none; }
least() { sort -n | head -1; }
row "the mount's file, from the store" "$bytes" "$(seconds file)"
row "the mount's file, from the decoded cache" "$bytes" "$(for _ in $rounds; do drop && seconds file; done | least)"
row "the mount's file, as the kernel keeps it" "$bytes" "$(for _ in $rounds; do seconds file; done | least)"
cmp "$dir/mount/base.erofs" "$dir/base.erofs" >&2 # what is fast is right too
# mount(2) itself, as /init calls it: mount(8) would put a loop device in between. 165 is its number on x86-64, 1 is MS_RDONLY.
perl -e 'my ($from, $to, $type, $none) = (@ARGV, "erofs", ""); syscall(165, $from, $to, $type, 1, $none) == 0 or die "mount: $!\n"' \
  "$dir/mount/base.erofs" "$dir/eroot"
mount -t squashfs -o ro,loop "$dir/base.squashfs" "$dir/sroot"
size=$(tar -C "$dir/eroot" --one-file-system -cf - . | wc -c)
rm -f "$dir"/*.seconds
for _ in $rounds; do
  drop
  seconds tree "$dir/eroot" >>"$dir/erofs.seconds"
  drop
  cat "$dir/base.squashfs" >/dev/null
  seconds tree "$dir/sroot" >>"$dir/squashfs.seconds"
done
row "a tree, over the mount: EROFS" "$size" "$(least <"$dir/erofs.seconds")"
row "a tree, squashfs zstd 128K, by the kernel" "$size" "$(least <"$dir/squashfs.seconds")"
