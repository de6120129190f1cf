#!/usr/bin/env bash
# ci/bench store: what publishing costs, next to casync (Debian's package) on the same image in the same run, both at zstd-3.
# One run each, one thread each, fresh stores; then an update of eight packages into the same stores.
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

rm -rf "$dir"/{ours,casync,desync} "$dir"/k.* "$dir"/*.tsv
"$gasthaus" --quiet key new "$dir/k.key" --no-password >/dev/null
bytes() { find "$1" -type f -printf '%s\n' 2>/dev/null | awk '{ sum += $1 } END { printf "%.0f", sum }'; }
cat "$base" >/dev/null # everyone finds it in the page cache
ours() { "$helper" meter "$dir/$1.tsv" ours - "$gasthaus" --quiet publish "$2" --to "$dir/ours" --key "$dir/k.key" --jobs 1 --level "${LEVEL:-3}" >/dev/null; }
theirs() { "$helper" meter "$dir/$1.tsv" casync - casync make --compression=zstd --store="$dir/casync" "$dir/$1.caibx" "$2" >/dev/null; }
others() { "$helper" meter "$dir/$1.tsv" desync - desync make -n 1 -s "$dir/desync" "$dir/$1.desync.caibx" "$2" >/dev/null; }
who="theirs ours"
! command -v desync >/dev/null || { mkdir -p "$dir/desync" && who="theirs others ours"; }

report() { # report ROWS IMAGE: seconds of the meter, bytes of the stores
  local size label wall cpu rest
  size=$(stat -c %s "$2")
  echo "| | wall s | processor s | MB/s | MB/s per processor second | objects | new MB |"
  echo "|---|---|---|---|---|---|---|"
  while IFS=$'\t' read -r label wall cpu rest; do
    awk -v l="$label" -v w="$wall" -v c="$cpu" -v s="$size" -v o="$(find "$dir/$label" -type f | wc -l)" -v n="$(bytes "$dir/$label")" \
      -v b="$(cat "$dir/$label.before" 2>/dev/null || echo 0)" \
      'BEGIN { printf "| %s | %.1f | %.1f | %.0f | %.0f | %d | %.1f |\n", l, w, c, s / w / 1e6, s / c / 1e6, o, (n - b) / 1e6 }'
    bytes "$dir/$label" >"$dir/$label.before"
  done <"$1"
}

rm -f "$dir"/*.before
for tool in $who; do sync && $tool first "$base"; done
echo "A base system of $(($(stat -c %s "$base") / 1000000)) MB, new store:"
echo
report "$dir/first.tsv" "$base"
if [ -e "$update" ] && [ -z "${IMAGE:-}" ]; then
  for tool in $who; do sync && $tool second "$update"; done
  echo
  echo "Eight packages updated:"
  echo
  report "$dir/second.tsv" "$update"
fi
