//! The program as a user starts it: arguments, files, exit codes, messages.

#[cfg(unix)]
mod access;
mod commands;
mod configuration;
mod fixture;
mod life;
#[cfg(unix)]
mod packed;
#[cfg(unix)]
mod server;
#[cfg(unix)]
mod tutorial;
