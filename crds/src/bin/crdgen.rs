//! Writes the CRDs as YAML into a folder (default: this crate's own): `cargo run -p spillway-crds --bin crdgen [FOLDER]`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder =
        std::env::args_os().nth(1).map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    for (name, text) in spillway_crds::yaml::files()? {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}
