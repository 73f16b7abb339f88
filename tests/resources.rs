//! What ptxas says of every kernel, compiled for every target, against the table in the repository: registers and spills.
//! Update it with `TUCO_UPDATE=1 cargo test --release --features cuda --test resources`.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const HEADER: &str = "kernel\ttarget\tregisters\tspilled bytes\n";

/// The number before `what` in `text`.
fn number_before(text: &str, what: &str) -> u32 {
    let before = text.split(what).next().unwrap().trim_end();
    before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// The table of a report of `ptxas -v`.
fn table(report: &str) -> String {
    let mut rows = BTreeSet::new();
    for entry in report.split("Compiling entry function '").skip(1) {
        let mut quoted = entry.split('\'');
        let (kernel, target) = (quoted.next().unwrap(), quoted.nth(1).unwrap());
        let kernel = kernel.strip_prefix("tuco_").unwrap();
        let spilled = number_before(entry, "bytes spill stores") + number_before(entry, "bytes spill loads");
        let registers = number_before(entry, "registers");
        rows.insert(format!("{kernel}\t{target}\t{registers}\t{spilled}\n"));
    }
    HEADER.to_string() + &rows.into_iter().collect::<String>()
}

const REPORT: &str = include_str!(concat!(env!("OUT_DIR"), "/ptxas.txt"));

#[test]
fn no_product_waits_for_the_one_before_it() {
    let serialized: Vec<_> = REPORT.lines().filter(|line| line.contains("serialized")).collect();
    assert!(serialized.is_empty(), "wgmma instructions that do not overlap: {serialized:#?}");
}

#[test]
fn registers_and_spills_are_those_of_the_table() {
    let found = table(REPORT);
    assert!(found.lines().count() > 60, "the report holds too few kernels:\n{found}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/resources.tsv");
    if env::var_os("TUCO_UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    let changed: Vec<_> =
        found.lines().filter(|line| !expected.lines().any(|other| other == *line)).collect();
    assert_eq!(found, expected, "kernels/resources.tsv is not what nvcc 13.0 makes; new rows: {changed:#?}");
    assert!(found.lines().skip(1).all(|line| line.ends_with("\t0")), "registers are spilled:\n{found}");
}

/// Kernels of few twin rows run on multiprocessors that are multiplying context rows (`product_sm90_narrow_*`): there are registers
/// left for a block of each. A quarter of a multiprocessor has 16384 of them and every fourth warp.
#[test]
fn kernels_of_few_twin_rows_find_room_beside_narrow_products() {
    let resources = table(REPORT);
    let taken = |kernel: &str, warps: u32| {
        let prefix = format!("{kernel}\tsm_90a\t");
        let row = resources.lines().find_map(|line| line.strip_prefix(&prefix));
        let registers: u32 = row
            .unwrap_or_else(|| panic!("{kernel} is not in the table"))
            .split('\t')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        registers.next_multiple_of(8) * 32 * warps.div_ceil(4)
    };
    let narrow = ["activated", "add", "gated", "store_bf16"]
        .map(|epilogue| taken(&format!("product_sm90_narrow_{epilogue}"), 12));
    let narrow = narrow.into_iter().max().unwrap();
    let products = ["activated", "add", "gated", "store"]
        .map(|epilogue| (format!("twin_product_sm90_8_{epilogue}"), 11));
    let others = [
        ("twin_mean_sm90_narrow_bf16", 5),
        ("twin_softmax", 4),
        ("key_score_sm90_64", 5),
        ("key_score_sm90_128", 5),
        ("key_score_sm90_256", 5),
        ("norm_f32_f32", 8),
        ("split_f32", 8),
        ("rotate_f32", 2),
        ("contribution", 8),
    ];
    for (kernel, warps) in products.into_iter().chain(others.map(|(kernel, warps)| (kernel.into(), warps))) {
        let both = narrow + taken(&kernel, warps);
        assert!(both <= 16384, "{kernel} and a narrow product take {both} registers of a quarter");
    }
}

/// CUDA's disassembler, beside the compiler that made the kernels.
fn cuobjdump() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let homes = homes.chain([PathBuf::from("/usr/local/cuda")]);
    let found = homes.map(|home| home.join("bin/cuobjdump")).find(|path| path.is_file());
    found.unwrap_or_else(|| "cuobjdump".into())
}

/// What nvcc made of each kernel that only Hopper has: name and listing.
fn hopper_listings() -> Vec<(String, String)> {
    let mut kernels = Vec::new();
    for entry in fs::read_dir(env!("OUT_DIR")).unwrap() {
        let fatbin = entry.unwrap().path();
        if !fatbin.to_string_lossy().ends_with("_sm90.fatbin") {
            continue;
        }
        let tool = cuobjdump();
        let bin = tool.parent().unwrap().display().to_string();
        let path = format!("{bin}:{}", env::var("PATH").unwrap_or_default());
        let output = Command::new(&tool).arg("--dump-sass").arg(&fatbin).env("PATH", path).output();
        let output =
            output.unwrap_or_else(|error| panic!("cuobjdump, which CUDA_HOME/bin has to hold: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listing = String::from_utf8(output.stdout).unwrap();
        let of = |kernel: &str| (kernel.lines().next().unwrap().to_string(), kernel.to_string());
        kernels.extend(listing.split("Function : ").skip(1).map(of));
    }
    assert_eq!(kernels.len(), 44, "kernels for Hopper");
    kernels
}

#[test]
fn kernels_for_hopper_multiply_with_whole_warpgroups() {
    for (name, listing) in hopper_listings() {
        assert!(listing.contains("HGMMA.64x"), "{name} has no product of a warpgroup");
        for local in ["LDL", "STL"] {
            assert!(!listing.contains(local), "{name} keeps registers in memory");
        }
    }
}

/// They may start before the kernel before them has ended, so they have to wait for it.
#[test]
fn kernels_for_hopper_wait_for_the_one_before() {
    for (name, listing) in hopper_listings() {
        assert!(listing.contains("ACQBULK"), "{name} does not wait");
    }
}

/// Blocks of a cluster tell each other in every step that a place is free: without fences of the whole device, which are for
/// the beginning and the end.
#[test]
fn blocks_of_a_cluster_do_not_wait_for_memory_in_every_step() {
    for (name, listing) in hopper_listings() {
        for (fence, most) in [("MEMBAR.ALL.GPU", 2), ("CCTL.IVALL", 2)] {
            let found = listing.matches(fence).count();
            assert!(found <= most, "{name} has {found} of {fence}");
        }
    }
}

/// Attention waits twice in its loop: for scores, then for the values before. In between it makes weights of the scores.
#[test]
fn attention_on_hopper_makes_weights_while_it_multiplies() {
    for (name, listing) in hopper_listings() {
        if !name.contains("attention") {
            continue;
        }
        let (_, after_scores) = listing.split_once("DEPBAR.LE gsb0, 0x1").expect("a wait for scores");
        let mut parts = after_scores.split("DEPBAR.LE gsb0, 0x0");
        let (during, after) = (parts.next().unwrap(), parts.next().expect("a wait for values"));
        assert!(
            during.contains("MUFU.EX2") && !after.contains("MUFU.EX2"),
            "{name} waits before it makes weights"
        );
    }
}
