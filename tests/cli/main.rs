//! The program as a user starts it: arguments, files, exit codes, messages.

mod commands;
mod configuration;
mod fixture;
#[cfg(unix)]
mod server;
