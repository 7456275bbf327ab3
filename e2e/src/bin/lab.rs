//! `lab`: builds, starts and ends a real Kubernetes on this machine.
#![allow(clippy::print_stdout, reason = "talking to the person at the terminal is this program's job")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use spillway_lab::{Lab, LabOptions, Size, device_plugin, guard, logs_tail, packages, paths, state, teardown, tools};

/// A real Kubernetes on this one machine, built from source, with fake and real GPU nodes.
#[derive(Debug, Parser)]
#[command(name = "lab", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  lab build                                  build and install what the lab needs (once)
  lab up --size cluster                      control plane and fake nodes
  lab up --size node --nodes 2               also two real nodes with 8 devices each
  export KUBECONFIG=$(lab kubeconfig)        then kubectl, helm and spillway just work
  lab images                                 our own binaries as images, loaded into the real nodes
  lab status                                 what runs
  lab down                                   take everything down, whatever was killed before";

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the Go tools into the cache and install missing Debian packages.
    Build,
    /// Start a lab and leave it running.
    Up {
        /// How much of Kubernetes.
        #[arg(long, value_enum, default_value_t = SizeArg::Node)]
        size: SizeArg,
        /// Real nodes (size node).
        #[arg(long, default_value_t = 1)]
        nodes: u32,
        /// Devices of each real node.
        #[arg(long, default_value_t = 8)]
        gpus: u32,
        /// Label of each real node, `key=value`; may be repeated.
        #[arg(long = "node-label", value_name = "KEY=VALUE")]
        node_labels: Vec<String>,
        /// Taint of each real node from its first moment, `key=value:Effect`; may be repeated.
        #[arg(long = "node-taint", value_name = "TAINT")]
        node_taints: Vec<String>,
        /// The lab's name.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Take labs down: one by name, or all that this user has.
    Down {
        /// Only this one.
        #[arg(long)]
        name: Option<String>,
    },
    /// Show the labs and their processes.
    Status,
    /// Print the path of the admin's kubeconfig.
    Kubeconfig {
        /// The lab's name.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Print the last lines of a lab's logs.
    Logs {
        /// The lab's name.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// Lines of each log.
        #[arg(long, default_value_t = 20)]
        lines: usize,
    },
    /// Build the images of our own binaries and load them into a lab's real nodes.
    Images {
        /// The lab's name.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// Where Cargo put the binaries; by default the folder of this program.
        #[arg(long)]
        binaries: Option<PathBuf>,
    },
    /// Tell a kubelet of GPUs that do not exist.
    #[command(hide = true)]
    DevicePlugin {
        /// The kubelet's plugin folder.
        #[arg(long)]
        folder: PathBuf,
        /// The file that says how many devices there are and how many are broken.
        #[arg(long)]
        devices: PathBuf,
    },
    /// Wait for the owner of a lab to die, then take the lab down.
    #[command(hide = true)]
    Guard {
        /// The lab's folder.
        dir: PathBuf,
    },
}

const DEFAULT_NAME: &str = "lab";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SizeArg {
    Api,
    Cluster,
    Node,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            spillway_lab::progress::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Build => {
            packages::install_missing()?;
            let go_tools = tools::Tools::ensure()?;
            println!("{}", go_tools.kubernetes("kubectl").parent().unwrap_or(&paths::cache_dir()?).display());
            Ok(())
        }
        Command::Up { size, nodes, gpus, node_labels, node_taints, name } => {
            let size = match size {
                SizeArg::Api => Size::Api,
                SizeArg::Cluster => Size::Cluster,
                SizeArg::Node => Size::Node,
            };
            let mut options = LabOptions::new(size).named(&name).real_nodes(nodes);
            options.gpus_per_node = gpus;
            options.keep = true;
            options.node_taints = node_taints;
            for label in node_labels {
                let (key, value) = label.split_once('=').with_context(|| format!("'{label}' is not KEY=VALUE"))?;
                options.node_labels.push((key.to_owned(), value.to_owned()));
            }
            up(options)
        }
        Command::Down { name } => down(name.as_deref()),
        Command::Status => status(),
        Command::Kubeconfig { name } => {
            let dir = dir_of(&name)?;
            println!("{}", dir.join("kubeconfig").display());
            Ok(())
        }
        Command::Logs { name, lines } => {
            println!("{}", logs_tail(&paths::base_dir().join(name), lines));
            Ok(())
        }
        Command::Images { name, binaries } => images(&name, binaries),
        Command::DevicePlugin { folder, devices } => serve_devices(&folder, &devices),
        Command::Guard { dir } => guard::run(&dir),
    }
}

#[tokio::main]
async fn images(name: &str, binaries: Option<PathBuf>) -> Result<()> {
    let lab = Lab::attach(name).await?;
    let binaries = match binaries {
        Some(binaries) => binaries,
        None => paths::binaries_dir()?,
    };
    for image in lab.load_product_images(&binaries).await? {
        println!("{image}");
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn serve_devices(folder: &Path, devices: &Path) -> Result<()> {
    tracing_subscriber::fmt().with_ansi(false).init();
    device_plugin::run(folder, devices).await
}

#[tokio::main]
async fn up(options: LabOptions) -> Result<()> {
    let name = options.name.clone();
    let step = spillway_lab::progress::Step::begin(format!("starting the lab '{name}'"));
    let started = tokio::select! {
        started = Lab::start(options) => Some(started),
        _ = tokio::signal::ctrl_c() => None,
    };
    let Some(lab) = started else {
        teardown::tear_down(&paths::base_dir().join(&name), false)?;
        anyhow::bail!("interrupted; the lab was taken down");
    };
    let lab = lab?;
    step.done();
    println!("export KUBECONFIG={}", lab.kubeconfig().display());
    Ok(())
}

fn down(name: Option<&str>) -> Result<()> {
    for (dir, lab) in state::all(&paths::base_dir())? {
        // A test's lab is the test's own while that runs.
        let of_running_test = !lab.detached && lab.is_alive();
        if name.is_some_and(|name| name != lab.name) || (name.is_none() && of_running_test) {
            continue;
        }
        let step = spillway_lab::progress::Step::begin(format!("taking down the lab '{}'", lab.name));
        teardown::tear_down(&dir, false)?;
        step.done();
    }
    teardown::remove_old_logs(&paths::base_dir(), name)
}

fn status() -> Result<()> {
    let labs = state::all(&paths::base_dir())?;
    if labs.is_empty() {
        println!("no lab is up");
    }
    for (dir, lab) in labs {
        let condition = match (lab.is_alive(), lab.ready) {
            (true, true) => "up",
            (true, false) => "starting",
            (false, _) => "dead (`lab down` cleans up)",
        };
        println!("{}  size {}  {condition}  {}", lab.name, lab.size.word(), dir.display());
        for (name, record) in &lab.processes {
            let alive = record.identity.filter(spillway_lab::process::Identity::is_alive);
            println!("  {name:<26} {}", alive.map_or_else(|| "-".to_owned(), |process| process.pid.to_string()));
        }
    }
    Ok(())
}

fn dir_of(name: &str) -> Result<PathBuf> {
    let dir = paths::base_dir().join(name);
    state::State::read(&dir)?
        .with_context(|| format!("there is no lab '{name}': `lab up --name {name}` starts one"))?;
    Ok(dir)
}
