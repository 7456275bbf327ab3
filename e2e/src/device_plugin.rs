//! The lab's device plugin: tells a kubelet of GPUs that do not exist.
//!
//! It is honest about that: the devices are named `lab-gpu-N`, and a container gets their names in `LAB_GPUS` and nothing else. How many there
//! are, and how many of them are broken, stands in a file that tests may rewrite while it runs.

mod proto;
mod service;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server};
use tower::service_fn;

use proto::{RegisterRequest, VERSION};
use service::{Plugin, PluginServer};

/// The resource that is offered.
pub const RESOURCE: &str = "nvidia.com/gpu";
/// The environment variable in which a container finds its devices.
pub const ENVIRONMENT: &str = "LAB_GPUS";

const SOCKET: &str = "lab-gpu.sock";
const KUBELET_SOCKET: &str = "kubelet.sock";
const POLL: Duration = Duration::from_millis(250);

/// The devices of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// How many there are: `lab-gpu-0` up to one less than this.
    pub total: u32,
    /// How many of them, the last ones, are broken.
    pub broken: u32,
}

impl Devices {
    /// Reads `<total> <broken>`.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let mut numbers = text.split_ascii_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next().context("a number is missing")?.context("not a number");
        let total = next().with_context(|| format!("in {}", file.display()))?;
        let broken = next().with_context(|| format!("in {}", file.display()))?;
        Ok(Self { total, broken })
    }

    /// Writes what [`Self::read`] reads.
    pub fn write(self, file: &Path) -> Result<()> {
        let scratch = file.with_extension("new");
        std::fs::write(&scratch, format!("{} {}\n", self.total, self.broken))
            .with_context(|| format!("writing {}", scratch.display()))?;
        std::fs::rename(&scratch, file).with_context(|| format!("writing {}", file.display()))
    }
}

/// Serves the devices named in `devices` to the kubelet whose plugin folder is `folder`, until this process is ended.
///
/// A kubelet that starts again empties that folder, by which the plugin knows that it has to register again.
pub async fn run(folder: &Path, devices: &Path) -> Result<()> {
    let (sender, receiver) = watch::channel(Devices::read(devices)?);
    loop {
        wait_until_exists(&folder.join(KUBELET_SOCKET)).await;
        if let Err(error) = serve_once(folder, devices, &sender, receiver.clone()).await {
            tracing::warn!("serving the kubelet failed, trying again: {error:#}");
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn serve_once(
    folder: &Path,
    devices: &Path,
    sender: &watch::Sender<Devices>,
    receiver: watch::Receiver<Devices>,
) -> Result<()> {
    let socket = folder.join(SOCKET);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("removing the old socket");
        }
        _ => {}
    }
    let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
    let server = Server::builder()
        .add_service(PluginServer::new(Plugin::new(receiver)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let server = tokio::spawn(server);
    let result = register_and_watch(folder, devices, &socket, sender).await;
    server.abort();
    result
}

async fn register_and_watch(
    folder: &Path,
    devices: &Path,
    socket: &Path,
    sender: &watch::Sender<Devices>,
) -> Result<()> {
    let kubelet = folder.join(KUBELET_SOCKET);
    let seen = (inode(socket), inode(&kubelet));
    register(kubelet.clone()).await?;
    tracing::info!("registered {RESOURCE}");
    while (inode(socket), inode(&kubelet)) == seen {
        match Devices::read(devices) {
            Ok(now) => {
                sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
            }
            Err(error) => tracing::warn!("{error:#}"),
        }
        tokio::time::sleep(POLL).await;
    }
    tracing::info!("the kubelet has started again");
    Ok(())
}

async fn register(kubelet: PathBuf) -> Result<()> {
    let channel = Endpoint::try_from("http://kubelet")
        .context("an address")?
        .timeout(Duration::from_secs(10))
        .connect_with_connector(service_fn(move |_| {
            let kubelet = kubelet.clone();
            async move { UnixStream::connect(kubelet).await.map(TokioIo::new) }
        }))
        .await
        .context("connecting to the kubelet")?;
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: SOCKET.to_owned(),
        resource_name: RESOURCE.to_owned(),
        ..RegisterRequest::default()
    };
    service::register(channel, request).await.context("registering with the kubelet")
}

fn inode(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|metadata| metadata.ino())
}

async fn wait_until_exists(path: &Path) {
    // As long as this process runs: the kubelet may be down for a whole test.
    while !path.exists() {
        tokio::time::sleep(POLL).await;
    }
}
