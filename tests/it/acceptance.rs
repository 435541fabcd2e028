//! The main job on real data: held-out digits, posted one by one and by 64 connections at once.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use ndserve::api::{Limits, ServerOptions};

use crate::client::{Client, request};
use crate::models;
use crate::server::Server;

const CONNECTIONS: usize = 64;

/// The values of an array of a held-out file, each of `T` bytes little-endian.
fn array<const T: usize>(name: &str) -> Vec<[u8; T]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/held-out.npz");
    let mut archive = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    archive.by_name(&format!("{name}.npy")).unwrap().read_to_end(&mut bytes).unwrap();
    // Version 1 of the format: magic, version, the header's length in two bytes, the header.
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].chunks_exact(T).map(|value| value.try_into().unwrap()).collect()
}

/// A request per image, and the digit that it shows.
fn held_out() -> Vec<(Vec<u8>, i64)> {
    let pixels: Vec<f32> = array::<4>("image").into_iter().map(f32::from_le_bytes).collect();
    let labels = array::<8>("label").into_iter().map(i64::from_le_bytes);
    let body = |image: &[f32]| format!(r#"{{"inputs":[{{"name":"image","datatype":"FP32","shape":[1,1,8,8],"data":{image:?}}}]}}"#);
    let requests = pixels.chunks_exact(64).map(|image| request("POST", "/v2/models/digits/infer", &[], &body(image)));
    requests.zip(labels).collect()
}

/// The probabilities as text: the shortest that reads back to the same bits, so equal texts are equal bits.
fn probabilities(client: &mut Client, request: &[u8]) -> String {
    let answer = client.send(request);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["outputs"][0]["data"].to_string()
}

fn most_likely(probabilities: &str) -> usize {
    let values: Vec<f32> = serde_json::from_str(probabilities).unwrap();
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}

#[test]
fn held_out_digits_are_recognised_and_have_the_same_bits_alone_and_together() {
    let folder = models::only(&["digits"]);
    // Waiting for others makes sure that requests meet in a batch, whatever the machine's speed; a size that is preferred, that
    // they do where no more rows per second are to be had, as without optimisation.
    std::fs::write(folder.join("digits/model.toml"), "max_delay_ms = 2\npreferred_batch_rows = [64]").unwrap();
    let server =
        Server::start(folder, Limits::default(), ServerOptions { drain_timeout: Duration::from_secs(5), ..ServerOptions::default() });
    let samples = held_out();
    assert_eq!(samples.len(), 450);

    let mut client = Client::connect(server.address);
    let alone: Vec<String> = samples.iter().map(|(request, _)| probabilities(&mut client, request)).collect();
    let right = alone.iter().zip(&samples).filter(|(found, (_, label))| most_likely(found) as i64 == *label).count();
    assert!(right as f64 >= 0.985 * samples.len() as f64, "{right} of {} are right", samples.len());
    let handle = server.repository.get("digits", None).unwrap();
    let (batches, rows) = (handle.handle().unwrap().stats().batches(), handle.handle().unwrap().stats().rows);
    assert_eq!((batches, rows), (450, 450), "one by one, every request is a pass of its own");

    let (next, start) = (AtomicUsize::new(0), Barrier::new(CONNECTIONS));
    let together: Vec<(usize, String)> = std::thread::scope(|scope| {
        let connection = || {
            let mut client = Client::connect(server.address);
            let mut found = Vec::new();
            start.wait();
            loop {
                let i = next.fetch_add(1, Relaxed);
                let Some((request, _)) = samples.get(i) else { return found };
                found.push((i, probabilities(&mut client, request)));
            }
        };
        let connections: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(connection)).collect();
        connections.into_iter().flat_map(|connection| connection.join().unwrap()).collect()
    });
    assert_eq!(together.len(), samples.len());
    for (i, found) in together {
        assert_eq!(found, alone[i], "image {i} has other bits in a batch");
    }
    let stats = handle.handle().unwrap().stats();
    assert_eq!(stats.rows - rows, 450);
    assert!(stats.batches() - batches < 225, "{} passes for 450 requests of {CONNECTIONS} connections", stats.batches() - batches);
}
