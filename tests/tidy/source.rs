//! Reads Rust files as far as the rules of `tidy.rs` need it: words and marks, and every path that a file names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Modules by these names are compiled for tests only.
const TEST_MODULES: &[&str] = &["tests", "testing"];

/// The files of the repository by path.
#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) files: BTreeMap<String, File>,
}

pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Tree {
    pub(crate) fn sample(files: &[(&str, &str)]) -> Tree {
        let file = |(path, text): &(&str, &str)| (path.to_string(), File { path: path.to_string(), text: text.to_string() });
        Tree { files: files.iter().map(file).collect() }
    }

    /// Everything below the root but what git ignores.
    pub(crate) fn read(root: &Path) -> Tree {
        let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
        let ignored: Vec<&str> = ignored.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let mut tree = Tree::default();
        tree.collect(root, "", &ignored);
        tree
    }

    fn collect(&mut self, folder: &Path, prefix: &str, ignored: &[&str]) {
        for entry in fs::read_dir(folder).expect("a folder of the repository").map(|entry| entry.expect("its entry")) {
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            let path = format!("{prefix}{name}");
            if name == ".git" || ignored.iter().any(|pattern| ignores(pattern, &path, &name)) {
                continue;
            }
            if entry.path().is_dir() {
                self.collect(&entry.path(), &format!("{path}/"), ignored);
            } else {
                // Binary files too: exporters like to write paths into them.
                let text = String::from_utf8_lossy(&fs::read(entry.path()).expect("a file of the repository")).into_owned();
                self.files.insert(path.clone(), File { path, text });
            }
        }
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        path.is_empty() || self.files.contains_key(path) || self.files.keys().any(|file| file.starts_with(&format!("{path}/")))
    }

    /// The Rust files below a folder.
    pub(crate) fn rust<'a>(&'a self, under: &'a str) -> impl Iterator<Item = &'a File> {
        self.files.values().filter(move |file| file.path.starts_with(under) && file.path.ends_with(".rs"))
    }
}

/// The forms of .gitignore that this repository uses: `/path`, `*.ending`, and a name wherever it stands.
fn ignores(pattern: &str, path: &str, name: &str) -> bool {
    match (pattern.strip_prefix('/'), pattern.strip_prefix('*')) {
        (Some(anchored), _) => path == anchored.trim_end_matches('/'),
        (_, Some(ending)) => name.ends_with(ending),
        _ => name == pattern.trim_end_matches('/'),
    }
}

/// Something that a file names by a path.
#[derive(Debug, PartialEq)]
pub(crate) struct Name {
    /// From the crate's root if it is its own, else from a crate.
    pub(crate) path: Vec<String>,
    pub(crate) own: bool,
    pub(crate) line: usize,
    pub(crate) in_test: bool,
}

impl Name {
    pub(crate) fn own_module(&self) -> Option<&[String]> {
        (self.own && !self.path.is_empty()).then_some(&self.path)
    }
}

impl File {
    /// The path of the file's module: `engine::plan`; `main` and `lib` stand for the roots.
    pub(crate) fn module(&self) -> Vec<&str> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inner.trim_end_matches("/mod").split('/').collect()
    }

    /// Every path of two or more parts, and every leaf of a `use`, with `self`, `super` and names bound by `use` resolved.
    pub(crate) fn names(&self) -> Vec<Name> {
        let mut reader = Reader::new(self);
        while reader.at < reader.tokens.len() {
            reader.step();
        }
        reader.found
    }

    /// The names that `pub use` gives to others.
    pub(crate) fn exports(&self) -> BTreeSet<String> {
        let tokens = tokens(&self.text);
        let mut reader = Reader::new(self);
        let mut exported = BTreeSet::new();
        for (at, pair) in tokens.windows(2).enumerate() {
            if pair[0].text == "pub" && pair[1].text == "use" {
                reader.at = at + 2;
                let mut leaves = Vec::new();
                reader.tree(&mut Vec::new(), &mut leaves);
                exported.extend(leaves.into_iter().map(|(_, bound)| bound));
            }
        }
        exported
    }
}

struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
    root: Vec<String>,
    /// Inline modules around the current token, with the depth of braces outside each.
    inner: Vec<(String, usize)>,
    depth: usize,
    /// Modules that the file declares: a path may begin with one.
    children: BTreeSet<String>,
    bound: BTreeMap<String, (bool, Vec<String>)>,
    is_program: bool,
    found: Vec<Name>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a File) -> Self {
        let tokens = tokens(&file.text);
        let declared = tokens.windows(2).filter(|pair| pair[0].text == "mod" && pair[1].is_word());
        let children = declared.map(|pair| pair[1].text.to_owned()).collect();
        let root: Vec<String> = file.module().into_iter().filter(|part| !["main", "lib"].contains(part)).map(str::to_owned).collect();
        let (inner, bound, found) = (Vec::new(), BTreeMap::new(), Vec::new());
        Reader { tokens, at: 0, root, inner, depth: 0, children, bound, is_program: file.path == "src/main.rs", found }
    }

    fn text(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    fn step(&mut self) {
        let (before, here, next) = (self.at.checked_sub(1).map_or("", |at| self.text(at)), self.text(self.at), self.text(self.at + 1));
        match here {
            "{" => self.depth += 1,
            "}" => {
                self.depth = self.depth.saturating_sub(1);
                self.inner.retain(|(_, outside)| *outside < self.depth);
            }
            "mod" if self.text(self.at + 2) == "{" => self.inner.push((next.to_owned(), self.depth)),
            "use" => {
                let line = self.tokens[self.at].line;
                self.at += 1;
                let mut leaves = Vec::new();
                self.tree(&mut Vec::new(), &mut leaves);
                for (path, binding) in leaves {
                    let (own, path) = self.resolve(path);
                    self.bound.insert(binding, (own, path.clone()));
                    self.record(own, path, line);
                }
                return;
            }
            _ if next == "::" && self.tokens[self.at].is_word() && !["::", "."].contains(&before) => {
                let line = self.tokens[self.at].line;
                let mut path = vec![here.to_owned()];
                while self.text(self.at + 1) == "::" && self.tokens.get(self.at + 2).is_some_and(Token::is_word) {
                    path.push(self.text(self.at + 2).to_owned());
                    self.at += 2;
                }
                let (own, path) = self.resolve(path);
                self.record(own, path, line);
            }
            _ => {}
        }
        self.at += 1;
    }

    /// Reads one branch of a `use`, up to the comma, brace or semicolon that ends it.
    fn tree(&mut self, prefix: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, String)>) {
        let start = prefix.len();
        loop {
            match self.text(self.at) {
                "{" => {
                    self.at += 1;
                    while !["}", ""].contains(&self.text(self.at)) {
                        self.tree(prefix, leaves);
                        self.at += usize::from(self.text(self.at) == ",");
                    }
                    self.at += 1;
                    break;
                }
                "::" => self.at += 1,
                "self" if !prefix.is_empty() => self.at += 1,
                part if part == "*" || self.tokens.get(self.at).is_some_and(Token::is_word) => {
                    prefix.push(part.to_owned());
                    self.at += 1;
                }
                _ => {
                    // Whatever is not part of a path ends it; a lone mark (as in `use<'a>`) must not be read for ever.
                    if prefix.len() == start && ![",", "}", ";", ""].contains(&self.text(self.at)) {
                        self.at += 1;
                    }
                    break;
                }
            }
            if self.text(self.at) == "as" {
                leaves.push((prefix.clone(), self.text(self.at + 1).to_owned()));
                self.at += 2;
                break;
            }
            if [",", "}", ";"].contains(&self.text(self.at)) {
                leaves.push((prefix.clone(), prefix.last().cloned().unwrap_or_default()));
                break;
            }
        }
        prefix.truncate(start);
    }

    /// Whether the path is the crate's own, and the path from its root or from the foreign crate.
    fn resolve(&self, path: Vec<String>) -> (bool, Vec<String>) {
        let mut module: Vec<String> = self.root.iter().chain(self.inner.iter().map(|(name, _)| name)).cloned().collect();
        let first = path.first().map_or("", String::as_str);
        match first {
            "crate" => module.clear(),
            "ndserve" if self.is_program => module.clear(),
            "self" | "super" => {}
            _ if self.bound.contains_key(first) => {
                let (own, bound) = &self.bound[first];
                return (*own, bound.iter().chain(&path[1..]).cloned().collect());
            }
            _ if self.children.contains(first) => {
                module.truncate(self.root.len());
                module.extend(path);
                return (true, module);
            }
            _ => return (false, path),
        }
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "ndserve" if self.is_program && module.is_empty() => {}
                "super" => drop(module.pop()),
                _ => module.push(part),
            }
        }
        (true, module)
    }

    fn record(&mut self, own: bool, path: Vec<String>, line: usize) {
        let in_test = self.root.iter().chain(self.inner.iter().map(|(name, _)| name)).any(|name| TEST_MODULES.contains(&name.as_str()));
        if !path.is_empty() {
            self.found.push(Name { path, own, line, in_test });
        }
    }
}

/// A word or a mark of a Rust file; `::` is one mark.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    pub(crate) line: usize,
}

impl Token<'_> {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// The words and marks of a Rust file, without comments, strings, characters and lifetimes.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let (mut found, mut rest, mut line) = (Vec::new(), text, 1);
    while let Some(first) = rest.chars().next() {
        let (length, is_code) = token(rest, first);
        if is_code {
            found.push(Token { text: &rest[..length], line });
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// The length of what `rest` begins with, and whether it is a word or a mark.
fn token(rest: &str, first: char) -> (usize, bool) {
    let is_part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), false)
    } else if rest.starts_with("/*") {
        (block_comment(rest), false)
    } else if let Some(length) = string(rest) {
        (length, false)
    } else if let Some(quoted) = rest.strip_prefix('\'') {
        (1 + character_or_lifetime(quoted), false)
    } else if is_part_of_word(first) {
        (rest.find(|c| !is_part_of_word(c)).unwrap_or(rest.len()), true)
    } else if rest.starts_with("::") {
        (2, true)
    } else {
        (first.len_utf8(), !first.is_whitespace())
    }
}

/// The length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let rest = &text[at..];
        match (rest.find("/*"), rest.find("*/")) {
            (Some(open), close) if close.is_none_or(|close| open < close) => (depth, at) = (depth + 1, at + open + 2),
            (_, Some(close)) => (depth, at) = (depth - 1, at + close + 2),
            (_, None) => return text.len(),
        }
        if depth == 0 {
            return at;
        }
    }
}

/// The length of a string literal of any kind, if the text begins with one.
fn string(text: &str) -> Option<usize> {
    let bare = text.strip_prefix(['b', 'c']).unwrap_or(text);
    if let Some(raw) = bare.strip_prefix('r') {
        let inner = raw.trim_start_matches('#');
        let end = format!("\"{}", "#".repeat(raw.len() - inner.len()));
        let body = inner.strip_prefix('"')?;
        return Some(text.len() - body.len() + body.find(&end).map_or(body.len(), |at| at + end.len()));
    }
    let body = bare.strip_prefix('"')?;
    let mut escaped = false;
    let end = body.find(|c| {
        let is_end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        is_end
    });
    Some(text.len() - body.len() + end.map_or(body.len(), |at| at + 1))
}

/// The length of what follows a single quote: the rest of a character, or of a lifetime.
fn character_or_lifetime(text: &str) -> usize {
    let mut characters = text.char_indices();
    match (characters.next(), characters.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            text[from..].find('\'').map_or(text.len(), |end| from + end + 1)
        }
        (_, Some((at, '\''))) => at + 1,
        _ => text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len()),
    }
}

#[test]
fn comments_strings_characters_and_lifetimes_are_no_code() {
    let text = r####"a /* b /* c */ d */ "e\"f" r#"g"h"# b"i" 'j' '\'' '\u{6b}' &'l m // n
        o::p br##"q"# "## r"#;"####;
    let found: Vec<&str> = tokens(text).iter().map(|token| token.text).collect();
    assert_eq!(found, ["a", "&", "m", "o", "::", "p"]);
    assert_eq!(tokens(text).last().map(|token| token.line), Some(2));
}
