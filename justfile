# The list of commands. A recipe is one line that calls cargo or a script, so that it can be copied where `just` is not
# installed; `.ci/run` reads its steps from here.

# what there is
default:
    @just --list

# start the server with the models of this repository
serve *ARGS:
    cargo run --release -- serve {{ARGS}}

# formatting, as it must be
fmt:
    cargo fmt --check

# lints of all targets
clippy:
    cargo clippy --locked --all-targets -- -D warnings

# the documentation of the crate
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# every test
test:
    cargo test --locked

# only the wall between the layers and the house rules
tidy:
    cargo test --locked --test tidy

# the static release binary, and that it is static
static:
    scripts/static-check.sh

# the models' recorded answers with each instruction set of this machine
isa:
    scripts/isa-check.sh "$(scripts/static-build.sh)"

# the binary started, asked the README's requests, stopped
smoke:
    scripts/smoke.sh "$(scripts/static-build.sh)"

# clients of Triton and KServe, unmodified, and the Python of the protocols' pages, against the binary (installs the clients into target/)
clients:
    tests/clients/run.py "$(scripts/static-build.sh)"

# requests made from the OpenAPI document, valid and not, against the binary (installs schemathesis into target/)
schemathesis:
    scripts/schemathesis.sh "$(scripts/static-build.sh)"

# the files in deploy/ against Kubernetes' schemas, Dockerfile, settings and routes
deploy:
    scripts/deploy-check.sh

# the image built and run by a Docker engine
container:
    scripts/container.sh

# everything CI runs, or the steps named
ci *STEPS:
    .ci/run {{STEPS}}

# each fuzz target for some seconds, from the kept inputs (needs a nightly toolchain and cargo-fuzz)
fuzz SECONDS="3600":
    scripts/fuzz.sh {{SECONDS}}

# what shares memory between threads, under miri (needs a nightly toolchain with miri and rust-src)
miri SEEDS="24":
    scripts/miri.sh {{SEEDS}}

# the kernels' tests on aarch64, by an emulator (needs that Rust target, a C compiler for it and qemu-user)
aarch64 *FILTER:
    scripts/aarch64.sh {{FILTER}}

# the kernels' tests with AVX-512 and VNNI where the processor has neither, in an emulated computer (what that needs: scripts/avx512.sh)
avx512 *FILTER:
    scripts/avx512.sh {{FILTER}}

# random graphs against ONNX Runtime and the reference evaluator (installs PyTorch and more into .venv)
differential *ARGS:
    cargo build --release && "$(scripts/python-env.sh)" scripts/differential.py {{ARGS}}

# licences, sources and duplicates of dependencies (cargo install --locked cargo-deny)
deny:
    cargo deny --locked check licenses sources bans

# train the models of this repository again
models:
    cargo build --release && for model in models/*/; do target/release/ndserve train "$model/train.toml" || exit; done

# ONNX Runtime gives the answers of the models of this repository, and their READMEs' lines make them anew (installs PyTorch and more into .venv)
check-models *ARGS:
    cargo build --release && "$(scripts/python-env.sh)" scripts/check_models.py target/release/ndserve {{ARGS}}

# export full-size architectures and compare with their frameworks (installs PyTorch and more into .venv-fixtures)
full-size *NAMES:
    "$(scripts/fixtures-env.sh)" scripts/full_size.py {{NAMES}}

# kernels: each instruction set, over sizes
bench-kernels *ARGS:
    cargo bench --locked --bench kernels -- {{ARGS}}

# a tensor read from JSON and from bytes, beside a copy of the same
bench-json:
    cargo bench --locked --bench json

# the engine beside ONNX Runtime and OpenVINO on exported models: record, plot, README's table (installs both and PyTorch into .venv-peers)
bench-peers *ARGS:
    scripts/peers/run.sh {{ARGS}}

# requests per second beside a server by hand on ONNX Runtime (needs wrk; models as `just bench-peers` exports them)
bench-peers-served *ARGS:
    cargo build --release --locked --bin ndserve --example ort_baseline && "$(scripts/peers/env.sh)" scripts/peers/served.py {{ARGS}}

# process start to first answer and memory, beside ONNX Runtime and OpenVINO (models as `just bench-peers` exports them)
bench-start *ARGS:
    cargo build --release --locked && "$(scripts/peers/env.sh)" scripts/peers/start.py --binary target/release/ndserve {{ARGS}}

# the server under load beside a hand-written handler (needs wrk)
bench-serve *ARGS:
    scripts/bench_serve.py {{ARGS}}

# a model reloaded under load, its bounds checked (needs wrk)
swap *ARGS:
    cargo build --release && scripts/swap.py {{ARGS}}

# seconds per run of one model, with the time per operator
bench-model MODEL *ARGS:
    cargo run --release -- bench --model models/{{MODEL}} {{ARGS}}
