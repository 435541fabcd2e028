//! Packed weights that one process keeps and the next finds.

use rustix::process::Signal;

use crate::fixture::{Folder, models};
use crate::server::Server;

/// `check` keeps them, too: so an image is built with them.
#[test]
fn packed_weights_that_check_kept_are_found_by_the_server() {
    let folder = Folder::new();
    let from = models().join("digits");
    std::fs::create_dir_all(folder.path("models/digits/1")).unwrap();
    std::fs::copy(from.join("1/model.onnx"), folder.path("models/digits/1/model.onnx")).unwrap();
    let check = ["check", "models/digits", "--weight-cache", "beside"];
    let text = folder.run(&check).ok().out;
    let kept = folder.path("models/digits/1").read_dir().unwrap().map(|item| item.unwrap().path());
    let kept = kept.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "packed")).unwrap();
    assert!(text.contains(&format!("kept in models/digits/1/{}", kept.file_name().unwrap().to_str().unwrap())), "{text}");
    let text = folder.run(&check).ok().out;
    assert!(text.contains("found") && !text.contains("kept in"), "{text}");

    let image = format!("{{\"instances\": [[[{}]]]}}", ["[1,1,0,0,0,0,1,1]"; 8].join(","));
    let ask = |args: &[&str]| {
        let mut server = Server::start(&folder, &[&["--log-filter", "debug"], args].concat());
        server.until("try: curl");
        let answer = server.ask("POST", "/v1/models/digits:predict", &image);
        server.signal(Signal::TERM);
        let ran = server.end().ok();
        assert_eq!(answer.0, 200, "{answer:?}");
        (answer.1, ran.out + &ran.err)
    };
    let (want, log) = ask(&[]);
    assert!(!log.contains("packed"), "{log}");
    let (found, log) = ask(&["--weight-cache", "beside"]);
    assert_eq!(found, want);
    assert!(log.contains("found packed weights") && !log.contains("bytes=0"), "{log}");

    let mut bytes = std::fs::read(&kept).unwrap();
    let last = bytes.len() - 4096;
    bytes[last] ^= 1;
    std::fs::remove_file(&kept).unwrap();
    std::fs::write(&kept, bytes).unwrap();
    let (found, log) = ask(&["--weight-cache", "beside"]);
    assert_eq!(found, want);
    assert!(log.contains("are damaged") && log.contains(".packed"), "{log}");

    // A file is where the folder would be.
    folder.write("taken", "");
    let text = folder.run(&["check", "models/digits", "--weight-cache", "taken/below"]).fails(1, &[]).out;
    assert!(text.contains("packed      FAILED: weights are not kept: taken/below/"), "{text}");
}
