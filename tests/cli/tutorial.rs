//! `docs/tutorial.md`, done: its files written, its commands run one after the other, what it shows compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fixture::{Folder, Ran, models};
use crate::server::Server;

/// Where the tutorial says that the server is.
const ADDRESS: &str = "localhost:8080";

/// A fenced block: the words behind the fence, and the lines.
struct Block {
    words: Vec<String>,
    lines: Vec<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(words) = line.strip_prefix("```") {
            let words = words.split_whitespace().map(str::to_owned).collect();
            found.push(Block { words, lines: lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect() });
        }
    }
    found
}

/// Whether a line is as one is shown, in which `…` stands for anything.
fn is_as(line: &str, shown: &str) -> bool {
    match shown.split_once('…') {
        None => line == shown,
        Some((start, rest)) => {
            line.strip_prefix(start).is_some_and(|line| (0..=line.len()).any(|at| line.is_char_boundary(at) && is_as(&line[at..], rest)))
        }
    }
}

/// Whether lines begin as they are shown; a line of `…` alone stands for any number of them.
fn are_as(lines: &[&str], shown: &[String]) -> bool {
    match shown.split_first() {
        None => true,
        Some((any, rest)) if any.trim() == "…" => (0..=lines.len()).any(|at| are_as(&lines[at..], rest)),
        Some((shown, rest)) => lines.split_first().is_some_and(|(line, lines)| is_as(line, shown) && are_as(lines, rest)),
    }
}

/// The words of a command; those in quotes are one.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('\'').enumerate();
    parts
        .flat_map(|(at, part)| if at % 2 == 1 { vec![part.to_owned()] } else { part.split_whitespace().map(str::to_owned).collect() })
        .collect()
}

/// Who follows the tutorial.
struct Reader {
    folder: Folder,
    server: Option<Server>,
}

impl Reader {
    fn place(&self, name: &str) -> PathBuf {
        self.folder.path("tutorial").join(name)
    }

    /// Does what a command says; gives what is to be seen then.
    fn run(&mut self, command: &str) -> String {
        let words = words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["ndserve", "serve", ref args @ ..] => {
                let args = [&["serve", "--listen", "127.0.0.1:0"], args].concat();
                let mut server = Server::spawn(self.folder.command(&args).current_dir(self.place("")));
                let text = server.first.replace(&server.address, "127.0.0.1:8080") + &server.until("ready");
                self.server = Some(server);
                text
            }
            ["curl", "-s", url, "-d", body] => {
                let path = url.strip_prefix(ADDRESS).unwrap_or_else(|| panic!("{url} is not at {ADDRESS}"));
                let server = self.server.as_ref().expect("a server runs by now");
                // A model that was just put there is looked for until it is served.
                let ready = path.split(':').next().unwrap().replace("/v1", "/v2") + "/ready";
                let end = Instant::now() + Duration::from_secs(30);
                while server.ask("GET", &ready, "").0 != 200 {
                    assert!(Instant::now() < end, "{ready} is not");
                    std::thread::sleep(Duration::from_millis(20));
                }
                let (status, answer) = server.ask("POST", path, body);
                assert_eq!(status, 200, "{command}: {answer}");
                answer
            }
            ["ndserve", ref args @ ..] => {
                let Ran { out, err, .. } = Ran::from(self.folder.command(args).current_dir(self.place("")).output().unwrap()).ok();
                err + &out
            }
            _ => panic!("`{command}` is neither the program nor a request"),
        }
    }
}

#[test]
fn the_tutorial_does_what_it_says() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorial.md")).unwrap();
    let mut reader = Reader { folder: Folder::new(), server: None };
    for name in ["train.npz", "held-out.npz"] {
        reader.folder.write(&format!("models/digits/{name}"), fs::read(models().join("digits").join(name)).unwrap());
    }
    fs::create_dir_all(reader.place("")).unwrap();
    let (mut commands, mut seen) = (0, String::new());
    for Block { words, lines } in blocks(&page) {
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["sh"] => {
                for command in &lines {
                    commands += 1;
                    seen = reader.run(command);
                }
            }
            ["text"] => {
                let found: Vec<&str> = seen.lines().collect();
                assert!(are_as(&found, &lines), "shown:\n{}\nfound:\n{seen}", lines.join("\n"));
            }
            [_, file] => fs::write(reader.place(file), lines.join("\n") + "\n").unwrap(),
            _ => panic!("a block of {words:?} is neither commands nor what they say nor a file"),
        }
    }
    assert!((8..10).contains(&commands), "{commands} commands");
    for file in ["served/points/1/model.onnx", "digits.html", "evaluation.html", "heat-maps/row-1.png"] {
        assert!(reader.place(file).is_file(), "{file}");
    }
}

#[test]
fn what_is_shown_is_compared() {
    let shown = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    assert!(is_as("loss 0.0012, 5 rows", "loss 0.00…, … rows") && !is_as("loss 0.0112, 5 rows", "loss 0.00…, … rows"));
    assert!(is_as("a", "a") && !is_as("ab", "a") && is_as("a", "a…") && !is_as("b", "a…"));
    assert!(are_as(&["a", "b", "c"], &shown(&["a", "…", "c"])) && !are_as(&["a", "b"], &shown(&["a", "…", "c"])));
    assert!(are_as(&["a", "b"], &shown(&["a"])) && !are_as(&["a", "b"], &shown(&["b"])));
    assert_eq!(words("curl -s x -d '{\"a\": [1, 2]}'"), ["curl", "-s", "x", "-d", "{\"a\": [1, 2]}"]);
}
