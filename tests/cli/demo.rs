//! The command lines of `tuco demo --all`. What the demo shows is tested with the other reports.

use crate::common::{run, tuco};

/// A folder that is not there ends it before anything is computed, and is named.
#[test]
fn command_lines_depend_on_the_flags_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("LAYOUT/DEMO"), folder.path().join("DEMO/OUT"));
    let mut demo = tuco();
    demo.args(["demo", "--all", "--dir"]).arg(&dir).arg("-o").arg(&out);
    // What the environment says is for the user's own runs.
    demo.env("TUCO_THREADS", "none").env("TUCO_ADAPTER", "another");
    let missing = format!("--base {}: there is no such directory", dir.join("base").display());
    let told = run(&mut demo).expect(2, &[&missing]).stdout;
    for word in [dir.join("prompts.jsonl"), out.join("compare")] {
        assert!(told.contains(word.to_str().unwrap()), "{} is not in {told}", word.display());
    }
}
