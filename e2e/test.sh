#!/usr/bin/env bash
# What the targets of the Makefile do, step by step: e2e/test.sh test|lint|unit|e2e|soak|bench-packing|bench-operator|bench-scale|bench-recovery|bench-planner|bench-routing|bench-gateway|fuzz|advisories|docs|images|demo|clean-lab
#
# - Every Cargo command selects the whole workspace and the same features, or dependencies would be compiled once more with
#   the features of a smaller choice. `--test NAME` and the like choose what runs.
# - The operator of the tests has kill points in it; they do nothing unless SPILLWAY_KILL_AT names one. That of the demo has none.
# - A step that fails does not end the run: the summary has it, and so has the exit status.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

cache=${SPILLWAY_CACHE:-$HOME/.cache/spillway}
target=${CARGO_TARGET_DIR:-$PWD/target}
logs=$target/test-logs
workspace=(--workspace --locked --features spillway-operator/kill-points)
# Tests on a real Kubernetes run in lanes side by side, for most of what they do is waiting: those that need real nodes one after the
# other, for only one lab of that size fits on the machine; chaos, which is long, and one more; and the rest. Within a lane the quick and telling ones first.
real_nodes=(lab sale serving demo)
long=(chaos tools)
order=(attacks chart guards)
# No Kubernetes, so they run with `make lint`.
not_e2e=(layering docs)

deny_version=0.20
mdbook_version=0.5
fuzz_version=0.13

# A panic tells where it came from; a test's error says so by its chain of causes, without pages of frames.
export RUST_LIB_BACKTRACE=${RUST_LIB_BACKTRACE:-0}

passed=0
failed=0
summary=()
wrong=()

if [ -t 1 ]; then say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }; else say() { printf '\n==> %s\n' "$*"; }; fi

# count_tests LOG: how many tests passed and failed by what a log says.
count_tests() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" |
        awk '/^test result: / { for (i = 1; i < NF; i++) { if ($(i+1) == "passed;") ok += $i; if ($(i+1) == "failed;") bad += $i } }
             END { print ok + 0, bad + 0 }'
}

# add TITLE EXIT-STATUS LOG SECONDS: adds up what a step says about tests; a command that is not a test counts as one.
add() {
    local ok bad
    read -r ok bad < <(count_tests "$3")
    # Not a test, or one that died before it could count.
    if (($2 != 0 && bad == 0)); then bad=1; fi
    if (($2 == 0 && ok == 0)); then ok=1; fi
    passed=$((passed + ok))
    failed=$((failed + bad))
    if ((bad > 0)); then wrong+=("$1" "$3"); fi
    summary+=("$(printf '%-44s %4d passed %4d failed %5d s' "$1" "$ok" "$bad" "$4")")
}

log_of() {
    mkdir -p "$logs"
    echo "$logs/${1//[^a-zA-Z0-9]/-}.log"
}

# step TITLE COMMAND...: runs the command, shows what it prints, and adds it up.
step() {
    local title=$1 begun=$SECONDS log rc
    shift
    log=$(log_of "$title")
    say "$title"
    # Standard error stays what it is, so that Cargo shows its progress on a terminal.
    "$@" | tee "$log"
    rc=${PIPESTATUS[0]}
    add "$title" "$rc" "$log" $((SECONDS - begun))
    return "$rc"
}

# tell_why TITLE LOG: the errors and panics in the log of a step that failed, the last 20 lines of them.
tell_why() {
    say "$1: why"
    sed 's/\x1b\[[0-9;]*m//g' "$2" |
        awk '/^(Error: |error|thread .* panicked at)/ { left = 12 } /^(failures:|test result: |Stack backtrace:)/ { left = 0 } left > 0 && NF { print; left-- }' |
        tail -n 20 | cut -c 1-1000
}

# Prints the sum and ends with what it means; before it, why steps failed.
finish() {
    set -- "${wrong[@]}"
    while (($# > 0)); do
        tell_why "$1" "$2"
        shift 2
    done
    say "summary ($SECONDS s)"
    printf '%s\n' "${summary[@]}"
    echo
    printf '%d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0 && passed > 0))
    exit
}

# The compiler's linker and a C compiler for `ring`; a fresh Debian has neither.
need_cc() {
    command -v cargo >/dev/null || { echo "Rust is missing: install rustup, then run this again" >&2; exit 1; }
    command -v cc >/dev/null && return
    say "installing a C compiler (apt-get install gcc libc6-dev)"
    [ "$(id -u)" = 0 ] || { echo "gcc and libc6-dev are missing, and only root can install them" >&2; exit 1; }
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends gcc libc6-dev || exit 1
}

# need_tool CRATE VERSION: a Cargo program in the cache, without optimisation: it is built once and runs for seconds.
need_tool() {
    local root=$cache/$1-$2
    [ -x "$root/bin/$1" ] && return
    say "building $1 $2 from source (once, then it is in $root)"
    # A folder of its own under the system's temporary one, not our target folder.
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug --quiet --root "$root" "$1@^$2"
}

# fuzz TARGET SECONDS: begins with the seeds of the repository; what it finds more is kept in the cache.
fuzz() {
    local corpus=$cache/fuzz/$1
    mkdir -p "$corpus"
    step "fuzz: $1" env -u CARGO_TARGET_DIR PATH="$cache/cargo-fuzz-$fuzz_version/bin:$PATH" \
        cargo +nightly fuzz run --fuzz-dir operator/gateway/fuzz --target-dir "$cache/fuzz/target" "$1" "$corpus" "operator/gateway/fuzz/seeds/$1" \
        -- -max_total_time="$2" -print_final_stats=1 -verbosity=0
}

deny() {
    need_tool cargo-deny "$deny_version" && "$cache/cargo-deny-$deny_version/bin/cargo-deny" --locked --all-features "$@"
}

# Binaries and tests in one go, because what only tests depend on adds features to common dependencies.
build() {
    step "build" cargo build "${workspace[@]}" --bins --tests || finish
    # The tests take what was built here, instead of asking Cargo again; one operator plays both that they know.
    ln -f "$target/debug/spillway-operator" "$target/debug/spillway-operator-kill-points" || exit 1
    export SPILLWAY_BIN_DIR=$target/debug
}

lab_tools() {
    need_go
    step "Debian packages and Go tools of the lab" "$target/debug/lab" build || finish
}

need_go() {
    command -v go >/dev/null || { echo "Go is missing: the lab builds Kubernetes from source" >&2; exit 1; }
}

lint() {
    step "format" cargo fmt --all --check
    step "clippy" cargo clippy "${workspace[@]}" --all-targets --keep-going -- --deny warnings
    # The fourth check, advisories, fetches a database from github.com: `make advisories`.
    step "cargo deny: bans, licences, sources" deny check bans licenses sources
    step "direction of dependencies, documentation" cargo test "${workspace[@]}" --no-fail-fast --test layering --test docs
}

unit() {
    step "unit tests and properties" cargo test "${workspace[@]}" --no-fail-fast --lib --bins
    step "model checks" cargo test "${workspace[@]}" --no-fail-fast --test model --test shared
    step "the gateway on loopback" cargo test "${workspace[@]}" --no-fail-fast --test proxy --test crash
    step "the usage service on SQLite and PostgreSQL" cargo test "${workspace[@]}" --no-fail-fast --test service
    step "examples in the documentation" cargo test "${workspace[@]}" --no-fail-fast --doc
}

# The names of the test files that need a Kubernetes, and `demo`, which is one more test: Spillway in pods, by its chart.
e2e_tests() {
    if [ -n "${TESTS:-}" ]; then
        tr ' ' '\n' <<<"$TESTS"
        return
    fi
    local all name
    all=$(find e2e/tests -mindepth 1 -maxdepth 2 \( -path 'e2e/tests/*/main.rs' -o -path 'e2e/tests/*.rs' ! -path 'e2e/tests/*/*' \) \
        -printf '%P\n' | sed 's,/main.rs$,,; s,\.rs$,,' | grep -vxF -f <(printf '%s\n' "${not_e2e[@]}") | sort)
    for name in "${order[@]}"; do grep -xF "$name" <<<"$all"; done
    grep -vxF -f <(printf '%s\n' "${order[@]}") <<<"$all"
    echo demo
}

# lane NAME...: runs tests one after the other; each is shown when it is over, so that lanes do not mix, and leaves how it went beside its log.
lane() {
    local name title log begun rc
    for name in "$@"; do
        title="e2e: $name"
        log=$(log_of "$title")
        begun=$SECONDS
        if [ "$name" = demo ]; then
            "$target/debug/demo" --down >"$log" 2>&1
        else
            cargo test "${workspace[@]}" --no-fail-fast --test "$name" -- --test-threads=1 >"$log" 2>&1
        fi
        rc=$?
        echo "$rc $((SECONDS - begun))" >"$log.rc"
        (
            flock 9
            say "$title ($((SECONDS - begun)) s)"
            cat "$log"
        ) 9>"$logs/show.lock"
    done
}

# Finds the lanes, and begins with the longest: what needs no Kubernetes runs beside it.
e2e_begin() {
    local name log
    machine=() alone=() rest=()
    while read -r name; do
        log=$(log_of "e2e: $name")
        rm -f "$log" "$log.rc"
        if printf '%s\n' "${real_nodes[@]}" | grep -qxF "$name"; then
            machine+=("$name")
        elif printf '%s\n' "${long[@]}" | grep -qxF "$name"; then
            alone+=("$name")
        else
            rest+=("$name")
        fi
    done < <(e2e_tests)
    # Go's programs collect garbage a quarter as often: three API servers share two cores, and memory is plenty.
    export GOGC=${GOGC:-400}
    say "end-to-end, side by side: ${machine[*]:-none} | ${alone[*]:-none} | ${rest[*]:-none} (logs in $logs)"
    lane "${machine[@]}" &
}

e2e_end() {
    local name log rc seconds
    lane "${alone[@]}" &
    lane "${rest[@]}" &
    wait
    for name in "${machine[@]}" "${alone[@]}" "${rest[@]}"; do
        log=$(log_of "e2e: $name")
        rc=1 seconds=0
        read -r rc seconds <"$log.rc" || true
        touch "$log"
        add "e2e: $name" "$rc" "$log" "$seconds"
    done
}

# demo --nodes FILE --existing KUBECONFIG --helm-args ARGS
demo() {
    local args=() more=()
    while (($# > 1)); do
        if [ -n "$2" ]; then
            case $1 in
                --nodes) args+=(--nodes "$2") ;;
                --existing) args+=(--existing "$2") ;;
                --helm-args) read -r -a more <<<"$2" ;;
            esac
        fi
        shift 2
    done
    need_cc
    need_go
    say "building Spillway and the lab (a first build takes minutes)"
    cargo build --workspace --locked --bins || exit 1
    exec "$target/debug/demo" "${args[@]}" ${more[@]+-- "${more[@]}"}
}

# bench-packing --nodes FILE --tasks FILE --seeds SEEDS --policy NAME: only the JSON goes to standard output.
bench_packing() {
    local args=("$@") missing=0 name
    while (($# > 1)); do
        name=${1#--}
        case $1 in
            --nodes | --tasks)
                if [ -z "$2" ]; then
                    echo "${name^^} is missing: make bench-packing NODES=nodes.csv TASKS=tasks.csv [SEEDS=42-51]" >&2
                    missing=1
                elif [ ! -r "$2" ]; then
                    echo "there is no readable file $2: name another with ${name^^}=" >&2
                    missing=1
                fi
                ;;
        esac
        shift 2
    done
    ((missing == 0)) || exit 2
    need_cc >&2
    # One binary of another profile: choosing the whole workspace would build the tests' dependencies for nothing.
    cargo build --release --locked -p spillway-cli --bin spillway || exit 1
    exec "$target/release/spillway" simulate openb "${args[@]}" -o json
}

# bench_routing --trace FILE ARGS...: only the JSON goes to standard output.
bench_routing() {
    local trace=${2:-}
    shift 2
    if [ -z "$trace" ]; then
        echo "TRACE is missing: make bench-routing TRACE=file.jsonl (lines of timestamp, input_length, output_length, hash_ids)" >&2
        exit 2
    elif [ ! -r "$trace" ]; then
        echo "there is no readable file $trace: name another with TRACE=" >&2
        exit 2
    fi
    need_cc >&2
    cargo build --release --locked -p spillway-gateway --example routing >&2 || exit 1
    exec "$target/release/examples/routing" "$trace" "$@"
}

# bench_lab operator|scale|recovery ARGS...: with the binaries that are shipped, without kill points. Only the JSON goes to standard output.
bench_lab() {
    need_cc >&2
    need_go >&2
    cargo build --release --locked --workspace --bins >&2 || exit 1
    "$target/release/lab" build >&2 || exit 1
    SPILLWAY_BIN_DIR=$target/release exec "$target/release/bench" "$@"
}

command=${1:-}
shift || true
case $command in
    test)
        need_cc
        build
        lab_tools
        e2e_begin
        lint
        unit
        e2e_end
        finish
        ;;
    lint) need_cc && lint; finish ;;
    unit) need_cc && unit; finish ;;
    e2e) need_cc && build && lab_tools && e2e_begin && e2e_end; finish ;;
    soak)
        export SPILLWAY_SOAK_KILLS=${SPILLWAY_SOAK_KILLS:-1000}
        need_cc && build && lab_tools
        step "soak: $SPILLWAY_SOAK_KILLS kills" cargo test "${workspace[@]}" --test chaos -- --test-threads=1 --nocapture random_kills
        export SPILLWAY_BAD_INPUTS=${SPILLWAY_BAD_INPUTS:-2000}
        export SPILLWAY_GATEWAY_KILLS=${SPILLWAY_GATEWAY_KILLS:-100}
        step "soak: $SPILLWAY_GATEWAY_KILLS kills of a gateway" cargo test "${workspace[@]}" --test crash -- --nocapture
        export SPILLWAY_SCALE_CYCLES=${SPILLWAY_SCALE_CYCLES:-20}
        step "soak: $SPILLWAY_SCALE_CYCLES times from none to two replicas and back" \
            cargo test "${workspace[@]}" --test serving -- --test-threads=1 --nocapture
        step "soak: $SPILLWAY_BAD_INPUTS bad inputs" cargo test "${workspace[@]}" --test badinput -- --test-threads=1 --nocapture
        finish
        ;;
    bench-packing) bench_packing "$@" ;;
    bench-operator | bench-scale | bench-recovery) bench_lab "${command#bench-}" "$@" ;;
    bench-planner)
        need_cc >&2
        cargo build --release --locked -p spillway-planner --example scale >&2 && exec "$target/release/examples/scale" "$@"
        ;;
    bench-routing) bench_routing "$@" ;;
    fuzz)
        need_cc
        need_tool cargo-fuzz "$fuzz_version" || exit 1
        rustup toolchain list | grep -q '^nightly' || { echo "a nightly toolchain is missing: rustup toolchain install nightly" >&2; exit 1; }
        for name in request sse log; do fuzz "$name" "${1:-60}"; done
        finish
        ;;
    bench-gateway)
        need_cc >&2
        cargo build --release --locked -p spillway-gateway -p spillway-lab --bins >&2 || exit 1
        exec "$target/release/bench" gateway "$@"
        ;;
    advisories) deny check advisories ;;
    docs)
        # The book is Markdown first; whoever has mdBook installed gets by with that.
        if command -v mdbook >/dev/null; then mdbook build docs/book; else
            need_tool mdbook "$mdbook_version" && "$cache/mdbook-$mdbook_version/bin/mdbook" build docs/book
        fi
        ;;
    images)
        need_cc
        cargo build --workspace --locked --bins && "$target/debug/lab" images --name "${LAB:-demo}"
        ;;
    demo) demo "$@" ;;
    clean-lab)
        [ -x "$target/debug/lab" ] || { need_cc && cargo build --workspace --locked --bin lab || exit 1; }
        "$target/debug/lab" down
        ;;
    *) sed -n '2p' "$0" | cut -c 3- >&2; exit 2 ;;
esac
