//! The program: an allocator and the command line.

use std::process::ExitCode;

/// Small concurrent requests allocate and free much; the system's allocator lets memory grow under them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ndserve::cli::run(std::env::args_os())
}
