#!/usr/bin/env bash
# Called by ci/bench: bench-stream.sh [grid | full | boot | record | OPTION…]: a recorded boot, replayed over slow lines by our client and by
# what people do today (stream-bench says how). As root, for mounts. BENCH_DIR keeps what is made (2 GB). Prints tables in Markdown.
#
# Without arguments: to the log-in prompt, the lines of `usual` below, some ten minutes. `grid`: ours and 2005's on every line, a
# quarter of an hour. `full`: every line and scheme, two hours,
# for most of which slow schemes wait on slow lines. `boot [OPTION…]`: real boots in QEMU at 50 ms and 100 Mbit/s, one for each scheme, beside what
# the model predicts for them; a quarter of an hour. `record [--flavour plain|xen]` boots without a profile, twice, and renews the two
# recordings in ci/boot-tests/data; what was made of the old ones in BENCH_DIR is to be removed then. Anything else goes to
# `stream-bench run`, e.g. --rtt 50 --mbit 10,100 --scheme ours,fixed --until ready.
set -euo pipefail
cd "$(dirname "$0")/../.."
ci/lib/install.sh
missing=()
for pair in mksquashfs:squashfs-tools nginx:nginx-light nbdkit:nbdkit nbdfuse:nbdfuse filefrag:e2fsprogs; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} != 0 ]; then
  apt-get -qq update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${missing[@]}" >&2
fi

kept=${BENCH_DIR:+yes}
mkdir -p "${BENCH_DIR:=$(mktemp -d)}"
dir=$(realpath "$BENCH_DIR")
server=
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  for layer in base site guests; do umount -q "$dir/all/$layer" "$dir/mnt/$layer" "$dir/packed/$layer" "$dir/streamed/$layer" 2>/dev/null || true; done
  [ -z "${mounting:-}" ] || kill "$mounting" 2>/dev/null || true
  [ "${kept:-}" = yes ] || rm -rf "$dir"
}
trap cleanup EXIT
mkdir -p "$dir"/{raw,www}
executables() { cargo build --release "$@" --message-format json-render-diagnostics | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'; }
builder() { # built only when something is to be made by it
  [ -n "${gasthaus:-}" ] || gasthaus=$(executables --workspace --bin gasthaus | tail -1)
  "$gasthaus" "$@" >&2
}
bench=$(executables -p boot-tests --bin stream-bench | tail -1)
examples=$(executables -p fuse-rootfs --features publish --example replay --example publish)
replay=$(grep '/replay$' <<<"$examples") publish=$(grep '/publish$' <<<"$examples")

# The demo's layers as they are streamed: the same trees as uncompressed EROFS.
[ -e "$dir/www/whole.iso" ] || { builder build --out "$dir/first" && mv "$dir/first/demo.iso" "$dir/www/whole.iso"; }
[ -d "$dir/iso" ] || xorriso -report_about FAILURE -osirrox on -indev "$dir/www/whole.iso" -extract /gasthaus "$dir/iso"
for layer in base site guests; do
  mkdir -p "$dir"/{packed,mnt,all}/$layer
  if [ ! -e "$dir/raw/$layer.erofs" ]; then
    mount -t erofs -o ro "$dir"/iso/*/$layer.erofs "$dir/packed/$layer"
    builder --quiet tools mkfs.erofs -E^inline_data -T1 --quiet "$dir/raw/$layer.erofs.new" "$dir/packed/$layer"
    mv "$dir/raw/$layer.erofs.new" "$dir/raw/$layer.erofs"
  fi
  mountpoint -q "$dir/mnt/$layer" || mount -t erofs -o ro "$dir/raw/$layer.erofs" "$dir/mnt/$layer"
  mountpoint -q "$dir/all/$layer" || mount --bind "$dir/mnt/$layer" "$dir/all/$layer"
done
"$bench" map "$dir" ci/boot-tests/data/dom0-boot-1.trace.gz profile
"$bench" map "$dir" ci/boot-tests/data/dom0-boot-2.trace.gz erofs
[ -e "$dir/www/fixed/index" ] || "$bench" pack "$dir"
if [ ! -e "$dir/www/all.squashfs" ]; then
  mksquashfs "$dir/all" "$dir/all.squashfs" -comp zstd -b 128K -quiet -no-progress -noappend >&2
  mv "$dir/all.squashfs" "$dir/www/"
fi
[ -e "$dir/squashfs.trace" ] || "$bench" squashfs "$dir" ci/boot-tests/data/dom0-boot-2.trace.gz
[ -e "$dir/www/store/head" ] || "$publish" "$dir" "${LEVEL:-19}"
if [ "${1:-}" = boot ] || [ "${1:-}" = record ]; then
  # What boots for real is built where its lock file and its key may lie; the URL is given when it boots.
  builder --version # it is built here, since cargo looks for its settings where it is started
  mkdir -p "$dir/net"
  [ -e "$dir/net/gasthaus.lock" ] || [ ! -e gasthaus.lock ] || cp gasthaus.lock "$dir/net/"
  (cd "$dir/net" && builder build --out out --output iso --output net-iso --output store --url http://10.0.2.2:8088)
  ln -sfn ../net/out/store "$dir/www/net"
  ln -sfn ../net/out/demo.iso "$dir/www/demo.iso"
  [ -e "$dir/www/store2005/head" ] || "$publish" "$dir" 2005
fi

port=$((20000 + RANDOM % 10000))
cat >"$dir/nginx.conf" <<CONF
daemon off; master_process off; pid $dir/nginx.pid; error_log stderr warn;
events { worker_connections 512; }
http {
  access_log off; default_type application/octet-stream; types { } sendfile on; tcp_nopush on;
  keepalive_requests 1000000; keepalive_timeout 600s;
  client_body_temp_path $dir/tmp; proxy_temp_path $dir/tmp; fastcgi_temp_path $dir/tmp; uwsgi_temp_path $dir/tmp; scgi_temp_path $dir/tmp;
  server { listen 127.0.0.1:$port; root $dir/www; }
}
CONF
PATH=$PATH:/usr/sbin nginx -p "$dir" -c "$dir/nginx.conf" &
server=$!
find "$dir/www" -type f -exec cat {} + >/dev/null # what is measured is the line, not this disk
run() { "$bench" run "$dir" --origin "127.0.0.1:$port" --replay "$replay" "$@"; }

usual() {
  echo "To the log-in prompt:"
  run --rtt 50 --mbit 100
  run --rtt 20,200 --mbit 100 --scheme ours,ours-cold,fixed
  run --rtt 50 --mbit 10,1000 --scheme ours,ours-cold,fixed
  echo "To the ready line, with both guests:"
  run --rtt 50 --mbit 100 --scheme ours,fixed --until ready
}
case ${1:-} in
  "") usual ;;
  grid) run --rtt 1,20,50,100,200 --mbit 10,100,1000 --scheme ours,ours-cold,fixed ;;
  record)
    # The images of the store, to tell by files what was read of them.
    mkdir -p "$dir/version"
    "$gasthaus" --quiet mount --key "$dir/net/gasthaus.pub" "$dir/net/out/store" "$dir/version" &
    mounting=$!
    for layer in base site guests; do
      mkdir -p "$dir/streamed/$layer"
      until [ -e "$dir/version/$layer.erofs" ]; do kill -0 "$mounting"; sleep 0.1; done
      mount -t erofs -o ro,loop "$dir/version/$layer.erofs" "$dir/streamed/$layer"
    done
    for number in 1 2; do "$bench" record "$dir" ci/boot-tests/data/dom0-boot-$number.trace.gz --origin "127.0.0.1:$port" "${@:2}"; done
    ;;
  boot) "$bench" boot "$dir" --origin "127.0.0.1:$port" --replay "$replay" "${@:2}" ;;
  full) run --rtt 1,20,50,100,200 --mbit 10,100,1000 ;;
  *) run "$@" ;;
esac
