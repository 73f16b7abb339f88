//! The parts of the crate depend on each other in one direction.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// Each part and the parts it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("hash", &[]),
    ("paths", &[]),
    ("sync", &[]),
    ("tensor", &[]),
    ("twin", &[]),
    ("gguf", &["error", "paths", "tensor"]),
    ("model", &["error", "tensor", "twin"]),
    ("metrics", &[]),
    ("checkpoint", &["error", "gguf", "hash", "model", "tensor", "twin"]),
    ("prompt", &["error", "gguf", "hash", "paths"]),
    ("output", &["error", "hash", "paths"]),
    ("backend", &["error", "metrics", "model", "sync", "tensor", "twin"]),
    ("engine", &["backend", "error", "metrics", "model", "sync", "tensor", "twin"]),
    (
        "experiment",
        &[
            "backend",
            "checkpoint",
            "engine",
            "error",
            "hash",
            "metrics",
            "model",
            "output",
            "paths",
            "prompt",
            "sync",
            "twin",
            "tensor",
        ],
    ),
    (
        "job",
        &[
            "backend",
            "checkpoint",
            "engine",
            "error",
            "experiment",
            "hash",
            "model",
            "output",
            "paths",
            "prompt",
            "tensor",
            "twin",
        ],
    ),
    ("session", &["checkpoint", "engine", "error", "experiment", "job", "model", "prompt", "sync", "twin"]),
    ("cli", &["error", "experiment", "job", "output"]),
];

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    fs::read_dir(path).unwrap().flat_map(|entry| sources(&entry.unwrap().path())).collect()
}

/// The parts named after `crate::` in `text`, comments left out.
fn used(text: &str) -> Vec<String> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join(" ");
    let mut parts = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => parts.push(rest),
            Some(list) => {
                let mut depth = 0;
                let mut start = 0;
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            parts.push(&list[start..i]);
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            parts.push(&list[start..i]);
                            start = i + 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let name = |part: &str| part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    parts.into_iter().map(name).collect()
}

#[test]
fn no_part_uses_one_against_the_direction() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for (part, allowed) in MAY_USE {
        let mut unused: HashSet<&str> = allowed.iter().copied().collect();
        let file = src.join(format!("{part}.rs"));
        let root = if file.exists() { file } else { src.join(part) };
        for path in sources(&root) {
            for name in used(&fs::read_to_string(&path).unwrap()) {
                // Errors are re-exported at the root.
                let name =
                    if ["Error", "ErrorKind", "Result"].contains(&name.as_str()) { "error" } else { &name };
                let known = MAY_USE.iter().any(|(known, _)| *known == name);
                unused.remove(name);
                assert!(!known || name == *part || allowed.contains(&name), "{} uses {name}", path.display());
                seen += 1;
            }
        }
        assert!(unused.is_empty(), "{part} may use {unused:?} and does not");
    }
    assert!(seen > 100, "the test found only {seen} uses");
    let parts = fs::read_dir(&src).unwrap().map(|entry| entry.unwrap().path());
    for path in parts.filter(|path| !["main.rs", "lib.rs"].iter().any(|root| path.ends_with(root))) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(MAY_USE.iter().any(|(part, _)| *part == name), "src/{name} has no place in the direction");
    }
}
