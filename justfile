# The project's recipes. `./dev RECIPE` runs them with the pinned tools; CI runs `check` and `test`.

set positional-arguments
set shell := ["sh", "-euc"]

export CARGO_TARGET_DIR := absolute_path(env("CARGO_TARGET_DIR", "target"))

# Tests and demo start these two programs; ./dev sets NATS_SERVER to the path of the pinned server.
export FANFARE_BIN := CARGO_TARGET_DIR / "debug/fanfare"
export NATS_SERVER := env("NATS_SERVER", "nats-server")

# In CI a Cargo.lock that is out of date is an error; elsewhere cargo brings it up to date.
locked := if env("CI", "") == "" { "" } else { "--locked" }

# list the recipes
default:
    @{{ quote(just_executable()) }} --list --unsorted

# run everything on this machine with a demo page; --once sends every sample event, reports and exits
demo *ARGS: _build
    @case " $* " in *" --once "*) ;; *) {{ quote(just_executable()) }} _page ;; esac
    @exec "$FANFARE_BIN" dev "$@"

# three nats-servers and three nodes on this machine, with a demo page that can kill, stop and start each of them
cluster *ARGS: _build _page
    @exec "$FANFARE_BIN" dev --cluster "$@"

# formatting, lints, documentation and the shape of the tree
check: _rust
    cargo fmt --check
    cargo clippy {{ locked }} --all-targets --features bench -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --features bench
    cargo test --test tidy

# every test there is: Rust, web and Python clients, and the example push services
test: _rust _npm _browser test-rust test-web test-python test-push (faults "--short")

# Integration tests wait more than they compute: two at once for each core take half the time of one.
# Rust tests; ARGS go to cargo test, such as a part of a test's name
test-rust *ARGS: _rust
    RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(({{ num_cpus() }} * 2))} \
        cargo test --lib --bins --test integration "$@"

# the TypeScript client in Node and in a real browser
test-web: _browser _build _npm
    cd clients/web && npm test
    CHROMIUM=$(tools/chromium) && export CHROMIUM && cd clients/web && npm run test:browser

# the wire protocol spoken by an independent implementation, the example of a membership service, the schema of declarations
test-python: _build
    PYTHONPATH=$(tools/install python-tests tests/python/requirements.txt) && export PYTHONPATH && \
        python3 tests/python/test_client.py && python3 tests/python/test_directory.py && \
        python3 tests/python/test_declarations.py

# the example push services in Go, Python and Node.js against what a real gateway hands off
test-push: _build
    @tools/need node npm
    cd examples/push/node && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund; }
    PYTHONPATH=$(tools/install python-tests tests/python/requirements.txt) && export PYTHONPATH && \
        PUSH_PYTHONPATH=$(tools/install push-example examples/push/python/requirements.txt) && export PUSH_PYTHONPATH && \
        python3 tests/push/test_push.py

# break things while notifications are on their way, and settle the accounts; --short is what CI runs
faults *ARGS: _build
    @cargo test --quiet --test faults -- "$@"

# measure the service on this machine, all of it in short or as `./dev bench sessions --count 100000`; docs/benchmarks.md
bench *ARGS: _rust
    cargo build --release {{ locked }} --bin fanfare --features bench
    @[ $# -gt 0 ] || set -- all; exec "$CARGO_TARGET_DIR/release/fanfare" bench "$@"

# run the commands of docs/provisioning.md and write what they print into it
transcript: _build
    TRANSCRIPT=write cargo test --quiet --test integration the_page_on_provisioning

# format the Rust code
fmt: _rust
    cargo fmt

_rust:
    @tools/need cargo cc

_browser:
    @tools/chromium >/dev/null

_build: _rust
    cargo build --bin fanfare

# The last file that `npm ci` writes is newer than the lock file if the install was completed for this lock file.
_npm:
    @tools/need node npm
    cd clients/web && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund; }

_page: _npm
    cd clients/web && npm run build
