//! The service through its sockets: a server in this process on a free port, and a client that writes raw bytes.

mod acceptance;
mod bad_input;
mod binary;
mod client;
mod contract;
mod equality;
mod lifecycle;
mod models;
mod server;
