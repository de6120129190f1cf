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
  if [ "$status" != 0 ] && [ "${SECOND_TRY:-}" = yes ]; then second_try "$log" "$@" || true; fi
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

# second_try LOG ARGUMENT…: boots failed machines once more, since a machine shared with others is sometimes too slow for a
# test's limits. Both tries are printed; the second one counts. LOG becomes that of the tests as they then stand, `status` too.
second_try() {
  local log=$1 names=() name more
  shift
  # The last list of `failures:` of each test program has their names.
  mapfile -t names < <(awk '/^failures:/ { list = 1; next } /^test result:/ { list = 0 }
    list && /^    [a-z0-9_:]+$/ { print $1 }' "$log" | sort -u)
  [ ${#names[@]} != 0 ] || return
  # A program that died, not a test that failed: trying others again must not hide it.
  ! grep -aq "process didn't exit successfully" "$log" || return
  echo "== once more: ${names[*]}"
  more=$(mktemp)
  local arguments=() argument
  for argument in "$@"; do # filters of the first try would come on top of the names
    arguments+=("$argument")
    [ "$argument" != -- ] || break
  done
  cargo test --release --no-fail-fast "${arguments[@]}" --ignored --test-threads 1 --exact "${names[@]}" 2>&1 | tee "$more"
  status=${PIPESTATUS[0]}
  local passed_now
  passed_now=$(sed -n 's/^test result:.* \([0-9]*\) passed;.*/\1/p' "$more" | awk '{ sum += $1 } END { print sum + 0 }')
  for name in "${names[@]}"; do echo "== failed at the first try: $name"; done
  # What failed first and passed now moves from one count to the other.
  awk -v moved="$passed_now" '/^test result:/ {
      match($0, /[0-9]+ passed/); good = substr($0, RSTART) + 0
      match($0, /[0-9]+ failed/); bad = substr($0, RSTART) + 0
      take = bad < moved ? bad : moved; moved -= take
      print "test result: " good + take " passed; " bad - take " failed"
    }' "$log" >"$more"
  cat "$more" >"$log"
  rm -f "$more"
}

# part NAME: runs part_NAME and says how long it took.
part() {
  local began=$SECONDS before=$failed
  echo "== $1"
  "part_$1"
  echo "== $1: $((SECONDS - began)) s$([ $before = $failed ] || echo ", $((failed - before)) failed")"
}
