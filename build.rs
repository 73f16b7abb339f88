//! Compiles the kernels: feature `cuda` with nvcc into one fatbin a file, which the binary embeds; feature `sim` as C++ for the
//! simulated device.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    // A linter reads no kernels and links nothing.
    let is_linted = env::var("RUSTC_WORKSPACE_WRAPPER").is_ok_and(|wrapper| wrapper.contains("clippy"));
    let kernels = if is_linted { Vec::new() } else { kernel_files() };
    if env::var_os("CARGO_FEATURE_SIM").is_some() && !is_linted {
        compile_for_the_simulator(&kernels);
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_for_gpus(&kernels);
    }
}

fn kernel_files() -> Vec<PathBuf> {
    let entries = fs::read_dir("kernels").expect("the folder kernels/");
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a folder that can be read").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    files
}

fn compile_for_the_simulator(kernels: &[PathBuf]) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).define("TUCO_SIM", None).include("kernels");
    build
        .flag("-xc++")
        .flag("-Wno-unknown-pragmas")
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true);
    // What is fused is what kernels say.
    build.flag("-ffp-contract=off");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        build.flag("-mavx2").flag("-mfma");
    }
    // Kernels register themselves, so nothing refers to their objects.
    build.files(kernels).file("kernels/sim/sim.cpp").link_lib_modifier("+whole-archive").compile("tuco_sim");
}

/// Where nvcc may be.
fn nvcc() -> PathBuf {
    let variable = |name: &str| {
        println!("cargo:rerun-if-env-changed={name}");
        env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    };
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("bin/nvcc"));
    let on_path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&on_path).map(|dir| dir.join("nvcc")).collect::<Vec<_>>();
    let usual = Path::new("/usr/local/cuda/bin/nvcc").to_path_buf();
    let mut places =
        variable("NVCC").into_iter().chain(homes.collect::<Vec<_>>()).chain(on_path).chain([usual]);
    places.find(|path| path.is_file()).unwrap_or_else(|| {
        fail(
            "feature `cuda` needs nvcc (CUDA 13.0), which is not in $NVCC, $CUDA_HOME/bin, $CUDA_PATH/bin, PATH or \
             /usr/local/cuda/bin; docs/gpu.md tells how to get it from PyPI",
        )
    })
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1);
}

/// One fatbin a file, for sm_90a and sm_80 and as PTX for newer GPUs, `*_sm90.cu` only for sm_90a; all warnings are errors, spilled
/// registers too.
fn compile_for_gpus(kernels: &[PathBuf]) {
    let nvcc = if kernels.is_empty() { PathBuf::new() } else { nvcc() };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let start = |source: &PathBuf| -> (PathBuf, PathBuf, PathBuf, Child) {
        let fatbin = out.join(source.file_name().expect("a file")).with_extension("fatbin");
        let report = fatbin.with_extension("ptxas");
        let log = fs::File::create(&report).expect("OUT_DIR can be written");
        let child = Command::new(&nvcc)
            .args(["-O3", "-std=c++17", "-lineinfo", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills"])
            // A product that is fused into one side of a subtraction differs from its equal on the other; kernels say fmaf where they mean it.
            .arg("-fmad=false")
            .arg("-gencode=arch=compute_90a,code=sm_90a")
            .args((!is_for_hopper(source)).then_some("-gencode=arch=compute_80,code=[sm_80,compute_80]"))
            .args(["-fatbin", "-o"])
            .arg(&fatbin)
            .arg(source)
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| fail(&format!("cannot run {}: {error}", nvcc.display())));
        (source.clone(), fatbin, report, child)
    };
    // Fatbins, and whether only Hopper has what is in them.
    // The driver reads them where they lie, so they lie as nvcc would lay them.
    let mut table = String::from(
        "#[allow(dead_code, reason = \"linted without kernels\")]\n#[repr(C, align(64))]\nstruct Aligned<const N: usize>([u8; N]);\n\
         static FATBINS: &[(&[u8], bool)] = &[\n",
    );
    let mut reports = String::new();
    // As many at a time as cargo allows this build.
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    for batch in kernels.chunks(jobs) {
        let running: Vec<_> = batch.iter().map(start).collect();
        for (source, fatbin, report, mut child) in running {
            let done = child.wait().expect("a child process");
            let text = fs::read_to_string(&report).unwrap_or_default();
            if !done.success() {
                eprintln!("{text}");
                fail(&format!("nvcc does not compile {}", source.display()));
            }
            table += &format!("    (&Aligned(*include_bytes!({fatbin:?})).0, {}),\n", is_for_hopper(&source));
            reports += &text;
        }
    }
    fs::write(out.join("fatbins.rs"), table + "];\n").expect("OUT_DIR can be written");
    fs::write(out.join("ptxas.txt"), reports).expect("OUT_DIR can be written");
}

fn is_for_hopper(source: &Path) -> bool {
    source.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("_sm90"))
}
