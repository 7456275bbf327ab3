use std::io::Read as _;

use super::*;

fn files_of(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), bytes);
    }
    files
}

#[test]
fn an_image_is_a_whole_oci_layout_and_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    let image = Image::new("localhost/x:dev", &["/usr/bin/x"], NON_ROOT)
        .program("/usr/bin/x", &program)
        .link("/x", "usr/bin/x");
    let (one, two) = (dir.path().join("1.tar"), dir.path().join("2.tar"));
    image.write(&one).unwrap();
    // A file's time must not be in the image.
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    image.write(&two).unwrap();
    let bytes = std::fs::read(&one).unwrap();
    assert!(bytes == std::fs::read(&two).unwrap(), "two builds of the same files differ");

    let files = files_of(&bytes);
    let json = |path: &str| serde_json::from_slice::<serde_json::Value>(&files[path]).unwrap();
    let blob =
        |descriptor: &serde_json::Value| format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"));
    let named = &json("index.json")["manifests"][0];
    assert_eq!(named["annotations"]["io.containerd.image.name"], "localhost/x:dev");
    let manifest = json(&blob(named));
    let config = json(&blob(&manifest["config"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/bin/x"]));

    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(files[&blob(&manifest["layers"][0])].as_slice()).read_to_end(&mut layer).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&layer)));
    let inside: Vec<String> = files_of(&layer).into_keys().collect();
    assert_eq!(inside, ["tmp", "usr", "usr/bin", "usr/bin/x", "x"]);
}
