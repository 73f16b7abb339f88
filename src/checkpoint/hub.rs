//! Names of models → directories: a path as it is, a Hugging Face id through the local cache. Nothing is downloaded.

use crate::{Error, Result, gguf::find};
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Component, Path, PathBuf},
};

/// The directory or GGUF file of a model: `name` itself if it is one, otherwise the snapshot of the Hub id `name` at `revision`
/// (default: `main`) in the local cache.
///
/// The cache is `$HF_HUB_CACHE`, `$HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` or
/// `~/.cache/huggingface/hub`, as in `huggingface_hub` (constants.py).
///
/// # Errors
/// A usage error that says where was looked and which command fetches the model.
pub fn resolve(flag: &str, name: &str, revision: Option<&str>) -> Result<PathBuf> {
    resolve_in(&cache_dir(|variable| env::var_os(variable)), flag, name, revision)
}

fn resolve_in(cache: &Path, flag: &str, name: &str, revision: Option<&str>) -> Result<PathBuf> {
    let path = Path::new(name);
    if revision.is_some() && path.exists() {
        let kind = if path.is_dir() { "directory" } else { "file" };
        return Err(Error::usage(format!(
            "{flag}-revision is given, but {flag} {name} is a {kind}, not a Hub id"
        )));
    }
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.exists() {
        return match find(path)? {
            Some(file) => Ok(file),
            None => Err(Error::usage(format!(
                "{flag} {name} is a file; expected a model directory, a GGUF file or a Hub id"
            ))),
        };
    }
    if !is_hub_id(name) {
        return Err(Error::usage(format!("{flag} {name}: there is no such directory")));
    }
    let revision = revision.unwrap_or("main");
    let repository = cache.join(format!("models--{}", name.replace('/', "--")));
    let commit = fs::read_to_string(repository.join("refs").join(revision))
        .map_or_else(|_| revision.to_string(), |commit| commit.trim().to_string());
    let snapshot = repository.join("snapshots").join(&commit);
    // Neither leaves the cache: a commit is one name, a reference one or more (refs/pr/1).
    if is_below(&commit, 1) && is_below(revision, usize::MAX) && snapshot.is_dir() {
        return Ok(snapshot);
    }
    Err(Error::usage(format!(
        "{flag} {name}: there is no such directory, and the Hugging Face cache {} has no snapshot of it at revision \
         {revision}; fetch it with: hf download {name}{}",
        cache.display(),
        if revision == "main" { String::new() } else { format!(" --revision {revision}") }
    )))
}

/// Whether `path` leads from a folder to something below it, by at most so many names.
fn is_below(path: &str, most: usize) -> bool {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    (1..=most).contains(&parts.len()) && parts.iter().all(|part| matches!(part, Component::Normal(_)))
}

/// `name` or `owner/name`, of the characters that ids may have.
fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split('/').count() <= 2 && name.split('/').all(part)
}

fn cache_dir(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").unwrap_or_default().join(".cache");
    set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| {
        set("HF_HOME")
            .unwrap_or_else(|| set("XDG_CACHE_HOME").unwrap_or_else(home).join("huggingface"))
            .join("hub")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let dir = |set: &[(&str, &str)]| {
            cache_dir(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        let home = ("HOME", "/home/u");
        assert_eq!(dir(&[home]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(dir(&[home, ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(dir(&[home, ("HF_HOME", "/hf")]), Path::new("/hf/hub"));
        assert_eq!(dir(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        assert_eq!(dir(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/c"));
    }

    #[test]
    fn a_hub_id_resolves_to_its_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots/abc123");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        let resolve = |name: &str, revision| resolve_in(cache.path(), "--base", name, revision);
        assert_eq!(resolve("org/name", None).unwrap(), snapshot);
        assert_eq!(resolve("org/name", Some("abc123")).unwrap(), snapshot);
        let message = resolve("org/other", None).unwrap_err().message;
        assert!(message.contains("hf download org/other") && message.contains("--base"), "{message}");
        let message = resolve("org/name", Some("v2")).unwrap_err().message;
        assert!(message.contains("hf download org/name --revision v2"), "{message}");
        assert!(resolve("org/name", Some("../../x")).is_err());
        let message = resolve("./no/such/dir", None).unwrap_err().message;
        assert!(message.contains("no such directory") && !message.contains("hf download"), "{message}");
        let file = cache.path().join("model.gguf");
        fs::write(&file, "").unwrap();
        assert_eq!(resolve(file.to_str().unwrap(), None).unwrap(), file);
        for (path, kind) in [(cache.path(), "directory"), (file.as_path(), "file")] {
            let message = resolve(path.to_str().unwrap(), Some("v1")).unwrap_err().message;
            assert!(message.contains("--base-revision") && message.contains(kind), "{message}");
        }
    }
}
