#!/usr/bin/env bash
# ci/bench store: what publishing costs, next to casync (Debian's package) on the same image in the same run, both at zstd-3.
# One thread each, into fresh stores; then an update of eight packages into the same stores; then the whole way, from a folder of files
# to a store. ROUNDS (5) times, in turns; each row is the round that took the least processor time, since others' work on the machine
# only ever adds to it. Stores are removed at the end, not between rounds: ext4 looks at each inode that was freed within a minute when
# it wants a free one, which is a third of a second for whoever makes files then.
#
# What each does: casync rolls a hash over the image, cuts at 64 KiB on average, names chunks by SHA-512/256, packs them by zstd 3 and
# takes for good what is there. We follow the files of the EROFS image, cut at 128 KiB at most, take SHA-256 of chunks, pack by
# zstd 3, unpack and compare what is there, write pages, a bundle of metadata, a manifest and a signature, and sync.
# From a folder, casync makes an archive of its own that can be read as a whole only; we make a file system first (mkfs.erofs, counted).
#
# desync is compared too where it is installed. LEVEL=N publishes with another level; IMAGE=file with another image (no update).
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=()
for pair in casync:casync perl:perl-base xorriso:xorriso; do command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}"); done
if [ ${#missing[@]} != 0 ]; then
  apt-get -qq update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >&2
fi
kept=${BENCH_DIR:+yes}
mkdir -p "${BENCH_DIR:=$(mktemp -d)}"
dir=$(realpath "$BENCH_DIR")
[ "${kept:-}" = yes ] || trap 'rm -rf "$dir"' EXIT
executable() { cargo build --release "$@" --message-format json-render-diagnostics | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1; }
gasthaus=${GASTHAUS:-$(executable --workspace --bin gasthaus)}
helper=${BENCH_HELPER:-$(executable -p boot-tests --bin bench-helper)}

tools() { "$gasthaus" --quiet tools "$@" >/dev/null; }
pack() { # pack EPOCH IMAGE TREE: an uncompressed EROFS image, as it is published
  rm -f "$2"
  tools mkfs.erofs -d0 -E^inline_data "-T$1" -U00000000-0000-0000-0000-000000000001 "$2" "$3"
}

# The base layer of the demo, and the same after an update of eight packages: every 2000th byte of their programs differs, four
# of ten are a little longer. That is what a rebuild does to a program, roughly; names, owners and the rest stay.
base=${IMAGE:-$dir/base.erofs} update=$dir/new/base.erofs
if [ -z "${IMAGE:-}" ] && [ ! -e "$update" ]; then
  iso=${GASTHAUS_ISO:-$dir/first/demo.iso}
  [ -e "$iso" ] || "$gasthaus" build --out "$dir/first" >&2
  rm -rf "$dir/iso" "$dir/tree" && mkdir -p "$dir/new"
  xorriso -report_about FAILURE -osirrox on -indev "$iso" -extract /gasthaus "$dir/iso"
  tools fsck.erofs "--extract=$dir/tree" --xattrs --preserve "$dir"/iso/*/base.erofs
  pack 1700000000 "$base" "$dir/tree"
  perl -e '
    my ($tree) = @ARGV; srand 42; my $packages = 0;
    for my $package (qw(openssl libssl3t64 libc6 libc-bin libsystemd0 curl libcurl4t64 bash sudo libxml2 util-linux perl-base)) {
      last if $packages == 8;
      my ($list) = grep { -e } map { "$tree/var/lib/dpkg/info/$package$_.list" } "", ":amd64" or next;
      $packages++;
      open my $in, "<", $list or die;
      for my $path (map { chomp; "$tree$_" } <$in>) {
        next if -l $path or not -f $path;
        my @times = (stat $path)[8, 9];
        open my $file, "+<:raw", $path or die; local $/; my $bytes = <$file>;
        next unless $bytes =~ /^\x7fELF/;
        substr($bytes, int rand length $bytes, 1) ^= "U" for 1 .. 1 + length($bytes) / 2000;
        $bytes .= join "", map { chr rand 256 } 1 .. rand 9000 if rand() < 0.4;
        seek $file, 0, 0; print $file $bytes; close $file; utime @times, $path;
      }
    }' "$dir/tree"
  pack 1700000001 "$update" "$dir/tree"
fi

rm -rf "$dir"/k.* "$dir"/*.tsv "$dir"/*.counts
if compgen -G "$dir/stores.*" >/dev/null; then
  rm -rf "$dir"/stores.*
  sleep 40
fi
"$gasthaus" --quiet key new "$dir/k.key" --no-password >/dev/null
find "$base" "$dir/tree" -type f -exec cat {} + >/dev/null 2>&1 || true # everyone finds it in the page cache
export SOURCE_DATE_EPOCH=1700000001
metered() { "$helper" meter "$dir/$1.tsv" "$2" - "${@:3}" >/dev/null 2>&1; } # metered STAGE TOOL COMMAND…
ours() { metered "$1" ours "$gasthaus" --quiet publish "$2" --system bench --to "$3" --key "$dir/k.key" --jobs 1 --level "${LEVEL:-3}"; }
casync() {
  local index=caibx
  [ ! -d "$2" ] || index=caidx
  metered "$1" casync casync make --compression=zstd --store="$3" "$dir/$1.$index" "$2"
}
desync() {
  local what=(make -n 1 -s "$3" "$dir/$1.desync.caibx" "$2")
  [ ! -d "$2" ] || what=(tar -i -n 1 -s "$3" "$dir/$1.desync.caidx" "$2")
  metered "$1" desync desync "${what[@]}"
}
who="casync ours"
! type -P desync >/dev/null || who="casync desync ours"

publish() { # publish STAGE IMAGE|FOLDER STORES: by everyone; notes objects and bytes of each store then
  local tool
  for tool in $who; do
    mkdir -p "$3/desync"
    sync && "$tool" "$1" "$2" "$3/$tool"
    find "$3/$tool" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d %.0f\n", NR, sum }' >"$dir/$tool.$1.counts"
  done
}
report() { # report STAGE IMAGE [STAGE BEFORE]: the best round of each, and what its store grew by
  local tool
  echo "| | wall s | processor s | MB/s | MB/s per processor second | objects | new MB |"
  echo "|---|---|---|---|---|---|---|"
  for tool in $who; do
    awk -F'\t' -v l="$tool" -v s="$(stat -c %s "$2")" -v counts="$(cat "$dir/$tool.$1.counts")" \
      -v before="$([ -z "${3:-}" ] || cat "$dir/$tool.$3.counts")" '
      $1 == l && (!c || $3 < c) { w = $2; c = $3 }
      END { split(counts, n, " "); split(before, b, " ")
        printf "| %s | %.2f | %.2f | %.0f | %.0f | %d | %.1f |\n", l, w, c, s / w / 1e6, s / c / 1e6, n[1], (n[2] - b[2]) / 1e6 }' "$dir/$1.tsv"
  done
}

with_update=
[ ! -e "$update" ] || [ -n "${IMAGE:-}" ] || with_update=yes
for round in $(seq "${ROUNDS:-5}"); do
  publish first "$base" "$dir/stores.$round"
  [ -z "$with_update" ] || publish second "$update" "$dir/stores.$round"
  [ -z "$with_update" ] || publish tree "$dir/tree" "$dir/stores.$round/tree"
done
rm -rf "$dir"/stores.*
echo "A base system of $(($(stat -c %s "$base") / 1000000)) MB, new store:"
echo
report first "$base"
if [ -e "$dir/second.tsv" ]; then
  echo
  echo "Eight packages updated:"
  echo
  report second "$update" first
  echo
  echo "The updated tree, from its folder of files to a new store:"
  echo
  report tree "$update"
fi
