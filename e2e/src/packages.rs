//! Debian packages that a real node needs. Nothing here starts a service.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::paths::is_root;
use crate::progress::{Step, say};

/// Package and a file that shows that it is there.
const NEEDED: [(&str, &str); 8] = [
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("nftables", "/usr/sbin/nft"),
    ("iptables", "/usr/sbin/iptables"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("busybox-static", "/bin/busybox"),
    ("iproute2", "/bin/ip"),
];

/// Refuses starting services while packages are installed; `invoke-rc.d` asks it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The packages that are not installed.
pub fn missing() -> Vec<&'static str> {
    NEEDED.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect()
}

/// Installs what is missing, and says so.
pub fn install_missing() -> Result<()> {
    install(&missing())
}

/// Installs these packages, if there are any, and says so.
pub fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        is_root(),
        "these packages are missing and only root can install them: apt-get install {}",
        missing.join(" ")
    );
    say(&format!("installing Debian packages: {}", missing.join(" ")));
    let step = Step::begin("apt-get update");
    apt(&["update", "-q"])?;
    step.done();
    let policy_is_ours = refuse_services()?;
    let step = Step::begin("apt-get install");
    let mut args = vec!["install", "-y", "-q", "--no-install-recommends"];
    args.extend(missing);
    let installed = apt(&args);
    if policy_is_ours {
        std::fs::remove_file(POLICY).context("removing the temporary policy-rc.d")?;
    }
    installed?;
    step.done();
    Ok(())
}

fn refuse_services() -> Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    if Path::new(POLICY).exists() {
        return Ok(false);
    }
    std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").context("writing a temporary policy-rc.d")?;
    std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))
        .context("making policy-rc.d executable")?;
    Ok(true)
}

fn apt(args: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("running apt-get (the lab's packages are Debian's)")?;
    if !output.status.success() {
        bail!("apt-get {} failed:\n{}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
