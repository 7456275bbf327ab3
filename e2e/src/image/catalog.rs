//! The images that the lab knows: the pause container, busybox, and our own binaries.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Image, NON_ROOT, rootfs};
use crate::command::{checked, with_input};
use crate::paths::cache_dir;

/// The pause container's image, named in containerd's configuration.
pub const PAUSE: &str = "localhost/pause:dev";
/// busybox, with a link for each of its commands.
pub const BUSYBOX: &str = "localhost/busybox:dev";
/// The operator.
pub const OPERATOR: &str = "localhost/spillway-operator:dev";
/// The agent of each GPU node.
pub const AGENT: &str = "localhost/spillway-agent:dev";
/// The gateway of hosted models.
pub const GATEWAY: &str = "localhost/spillway-gateway:dev";
/// The usage service.
pub const USAGE: &str = "localhost/spillway-usage:dev";
/// The command line tool.
pub const CLI: &str = "localhost/spillway:dev";

const PAUSE_SOURCE: &str = include_str!("../../images/pause.c");

/// Builds what every real node needs, once, and returns the tar files.
pub fn base() -> Result<Vec<PathBuf>> {
    let dir = cache_dir()?.join("images");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let pause = dir.join("pause-1.tar");
    if !pause.is_file() {
        let scratch = tempfile::tempdir_in(&dir).context("creating a build folder")?;
        let program = scratch.path().join("pause");
        with_input("cc", &["-static", "-Os", "-s", "-x", "c", "-o", &program.to_string_lossy(), "-"], PAUSE_SOURCE)?;
        finish(&Image::new(PAUSE, &["/pause"], NON_ROOT).program("/pause", program), &pause)?;
    }
    let busybox = dir.join("busybox-1.tar");
    if !busybox.is_file() {
        let mut image = Image::new(BUSYBOX, &["/bin/sh"], 0).program("/bin/busybox", "/bin/busybox");
        for applet in checked("/bin/busybox", &["--list"])?.lines().filter(|applet| *applet != "busybox") {
            image = image.link(&format!("/bin/{applet}"), "busybox");
        }
        finish(&image, &busybox)?;
    }
    Ok(vec![pause, busybox])
}

/// Builds the images of our own binaries, as Cargo left them in `binaries` (such as `target/debug`), into `into`.
pub fn product(binaries: &Path, into: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(into).with_context(|| format!("creating {}", into.display()))?;
    let root = rootfs::glibc()?;
    // The agent talks to the container runtime's socket, which only root may.
    let all = [
        (OPERATOR, "spillway-operator", NON_ROOT),
        (AGENT, "spillway-agent", 0),
        (GATEWAY, "spillway-gateway", NON_ROOT),
        (USAGE, "spillway-usage", NON_ROOT),
        (CLI, "spillway", NON_ROOT),
    ];
    all.into_iter()
        .map(|(name, binary, user)| {
            let from = binaries.join(binary);
            anyhow::ensure!(from.is_file(), "{} is not built: cargo build --workspace", from.display());
            let at = format!("/usr/local/bin/{binary}");
            let image = Image::new(name, &[&at], user).tree(&root)?.program(&at, from);
            let tar = into.join(format!("{binary}.tar"));
            finish(&image, &tar)?;
            Ok(tar)
        })
        .collect()
}

/// Writes an image so that nobody meets half of it.
pub(super) fn finish(image: &Image, to: &Path) -> Result<()> {
    let scratch = to.with_extension(format!("{}.part", std::process::id()));
    image.write(&scratch)?;
    std::fs::rename(&scratch, to).with_context(|| format!("moving an image to {}", to.display()))
}
