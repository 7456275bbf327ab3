//! Container images without a container engine: an OCI layout in a tar file, one layer, made from files of this machine.

pub mod catalog;
pub mod engine;
pub mod rootfs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder, Sha256Digest,
};
use sha2::{Digest as _, Sha256};

/// The user of images that need no privileges, the same number as in distroless images.
pub const NON_ROOT: u32 = 65_532;

/// What one path of an image is.
#[derive(Debug, Clone)]
enum Entry {
    /// A copy of a file, with these permissions.
    File(PathBuf, u32),
    /// A symbolic link to this target.
    Link(PathBuf),
    /// An empty folder with these permissions.
    Folder(u32),
}

/// An image to be built.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entries: BTreeMap<PathBuf, Entry>,
    entrypoint: Vec<String>,
    user: u32,
}

impl Image {
    /// An image with a full name such as `localhost/busybox:dev`, its program, and the user it runs as.
    pub fn new(name: &str, entrypoint: &[&str], user: u32) -> Self {
        let entries = BTreeMap::from([(PathBuf::from("tmp"), Entry::Folder(0o1777))]);
        Self {
            name: name.to_owned(),
            entries,
            entrypoint: entrypoint.iter().map(|part| (*part).to_owned()).collect(),
            user,
        }
    }

    /// Its full name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an executable file at an absolute path of the image.
    #[must_use]
    pub fn program(mut self, at: &str, from: impl Into<PathBuf>) -> Self {
        self.entries.insert(inside(at), Entry::File(from.into(), 0o755));
        self
    }

    /// Adds a file that everybody may read at an absolute path of the image.
    #[must_use]
    pub fn file(mut self, at: &str, from: impl Into<PathBuf>) -> Self {
        self.entries.insert(inside(at), Entry::File(from.into(), 0o644));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, at: &str, target: &str) -> Self {
        self.entries.insert(inside(at), Entry::Link(PathBuf::from(target)));
        self
    }

    /// Adds everything below a folder of this machine.
    pub fn tree(mut self, root: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut open = vec![root.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
                let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
                let at = path.strip_prefix(root).context("a path outside its root")?.to_owned();
                let metadata = path.symlink_metadata().with_context(|| format!("reading {}", path.display()))?;
                if metadata.is_symlink() {
                    self.entries.insert(
                        at,
                        Entry::Link(path.read_link().with_context(|| format!("reading {}", path.display()))?),
                    );
                } else if metadata.is_dir() {
                    open.push(path);
                } else {
                    self.entries.insert(at, Entry::File(path, metadata.permissions().mode() & 0o777));
                }
            }
        }
        Ok(self)
    }

    /// Writes the image as an OCI layout into a tar file. The same files give the same bytes.
    pub fn write(&self, to: &Path) -> Result<()> {
        let layer = self.layer()?;
        let diff_id = format!("sha256:{}", hex(&layer));
        // Fast, because an image is imported on this machine a second later.
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&layer).context("compressing a layer")?;
        let mut blobs = Vec::new();
        let layer = blob(&mut blobs, MediaType::ImageLayerGzip, gzip.finish().context("compressing a layer")?)?;

        let arch = if cfg!(target_arch = "aarch64") { Arch::ARM64 } else { Arch::Amd64 };
        let config = ConfigBuilder::default()
            .entrypoint(self.entrypoint.clone())
            .user(format!("{0}:{0}", self.user))
            .env(vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()])
            .working_dir("/")
            .build()
            .context("an image's configuration")?;
        let rootfs =
            RootFsBuilder::default().typ("layers").diff_ids(vec![diff_id]).build().context("an image's root")?;
        let configuration = ImageConfigurationBuilder::default()
            .architecture(arch.clone())
            .os(Os::Linux)
            .config(config)
            .rootfs(rootfs)
            .build()
            .context("an image's configuration")?;
        let configuration =
            blob(&mut blobs, MediaType::ImageConfig, serde_json::to_vec(&configuration).context("JSON")?)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(configuration)
            .layers(vec![layer])
            .build()
            .context("an image's manifest")?;
        let manifest = serde_json::to_vec(&manifest).context("JSON")?;
        let named = DescriptorBuilder::default()
            .media_type(MediaType::ImageManifest)
            .size(manifest.len() as u64)
            .digest(Sha256Digest::from_str(&hex(&manifest)).context("a digest")?)
            .platform(PlatformBuilder::default().architecture(arch).os(Os::Linux).build().context("a platform")?)
            .annotations(HashMap::from([("io.containerd.image.name".to_owned(), self.name.clone())]))
            .build()
            .context("an image's descriptor")?;
        blob(&mut blobs, MediaType::ImageManifest, manifest)?;
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .manifests(vec![named])
            .build()
            .context("an image's index")?;

        let file = std::fs::File::create(to).with_context(|| format!("creating {}", to.display()))?;
        let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
        append_bytes(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append_bytes(&mut tar, "index.json", &serde_json::to_vec(&index).context("JSON")?)?;
        for (digest, bytes) in &blobs {
            append_bytes(&mut tar, &format!("blobs/sha256/{digest}"), bytes)?;
        }
        tar.into_inner().and_then(|mut file| file.flush()).with_context(|| format!("writing {}", to.display()))
    }

    /// The layer, uncompressed. Owners and times are left out, so that it depends on the files' contents alone.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut folders = BTreeSet::new();
        for path in self.entries.keys() {
            folders.extend(path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).map(Path::to_owned));
        }
        let mut tar = tar::Builder::new(Vec::new());
        for folder in folders.iter().filter(|folder| !self.entries.contains_key(*folder)) {
            append_folder(&mut tar, folder, 0o755)?;
        }
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder(mode) => append_folder(&mut tar, path, *mode)?,
                Entry::Link(target) => {
                    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, target).with_context(|| format!("adding {}", path.display()))?;
                }
                Entry::File(from, mode) => {
                    let bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
                    let mut header = header(tar::EntryType::Regular, *mode, bytes.len() as u64);
                    tar.append_data(&mut header, path, bytes.as_slice())
                        .with_context(|| format!("adding {}", path.display()))?;
                }
            }
        }
        tar.into_inner().context("ending a layer")
    }
}

fn inside(path: &str) -> PathBuf {
    PathBuf::from(path.trim_start_matches('/'))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blob(blobs: &mut Vec<(String, Vec<u8>)>, media_type: MediaType, bytes: Vec<u8>) -> Result<Descriptor> {
    let digest = hex(&bytes);
    let descriptor =
        Descriptor::new(media_type, bytes.len() as u64, Sha256Digest::from_str(&digest).context("a digest")?);
    blobs.push((digest, bytes));
    Ok(descriptor)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append_folder(tar: &mut tar::Builder<Vec<u8>>, path: &Path, mode: u32) -> Result<()> {
    let mut header = header(tar::EntryType::Directory, mode, 0);
    tar.append_data(&mut header, path, std::io::empty()).with_context(|| format!("adding {}", path.display()))
}

fn append_bytes<W: std::io::Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("adding {path}"))
}

#[cfg(test)]
mod tests;
