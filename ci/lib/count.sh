# Sourced by ci/test: runs commands, counts the tests in them, and times the parts.

passed=0
failed=0

# counted NAME COMMAND…: one test, which passes if the command does.
counted() {
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $name" >&2
  fi
}

# cargo_tests NAME ARGUMENT…: `cargo test ARGUMENT…`; every test that ran counts. A command that fails without a failed
# test (it did not compile, a test program died) is one failure.
cargo_tests() {
  local name=$1 log status line good=0 bad=0
  shift
  log=$(mktemp)
  cargo test --release --no-fail-fast "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  while read -r line; do
    # test result: ok. 18 passed; 0 failed; 0 ignored; …
    [[ $line =~ ([0-9]+)\ passed\;\ ([0-9]+)\ failed ]] || continue
    good=$((good + BASH_REMATCH[1]))
    bad=$((bad + BASH_REMATCH[2]))
  done < <(grep -a '^test result:' "$log")
  rm -f "$log"
  if [ $status != 0 ] && [ $bad = 0 ]; then bad=1; fi
  passed=$((passed + good))
  failed=$((failed + bad))
  [ $bad = 0 ] || echo "FAILED: $name ($bad)" >&2
}

# part NAME: runs part_NAME and says how long it took.
part() {
  local began=$SECONDS before=$failed
  echo "== $1"
  "part_$1"
  echo "== $1: $((SECONDS - began)) s$([ $before = $failed ] || echo ", $((failed - before)) failed")"
}
