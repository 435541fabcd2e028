//! The service through its sockets: a server in this process on a free port, and a client that writes raw bytes.

mod acceptance;
mod access;
mod bad_input;
mod binary;
mod client;
mod contract;
mod equality;
mod explain;
mod extensions;
mod grpc;
mod lifecycle;
mod listeners;
mod models;
mod openapi;
mod profile;
mod repository;
mod scheduling;
mod secure;
mod server;
mod traces;
mod wire;
