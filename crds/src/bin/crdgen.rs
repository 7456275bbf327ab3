//! Writes the CRDs as YAML: `cargo run -p spillway-crds --bin crdgen [FOLDER...]`.
//!
//! Without a folder it writes the committed copies: this crate's own (`kubectl apply -f crds/`) and the Helm chart's.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if let Some(option) = folders.iter().find(|folder| folder.to_string_lossy().starts_with('-')) {
        return Err(format!("crdgen takes folders and no options: {}", option.display()).into());
    }
    if folders.is_empty() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        folders = vec![own.to_owned(), own.join("../charts/spillway/files/crds")];
    }
    for (name, text) in spillway_crds::yaml::files()? {
        for folder in &folders {
            std::fs::create_dir_all(folder)?;
            std::fs::write(folder.join(&name), &text)?;
        }
    }
    Ok(())
}
