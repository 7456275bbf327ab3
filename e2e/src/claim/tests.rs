use super::*;
use crate::cluster_spec::Size;
use crate::process::Identity;

fn options(size: Size, name: &str) -> LabOptions {
    let mut options = LabOptions::new(size).named(name);
    options.wait_for_machine = Duration::ZERO;
    options
}

#[test]
fn a_name_is_a_folder_and_part_of_paths_of_sockets() {
    assert!(check_name("demo-1").is_ok());
    for wrong in ["", "Demo", "a/b", "..", &"x".repeat(33)] {
        assert!(check_name(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn only_one_lab_has_the_machine_but_others_live_beside_it() {
    let base = tempfile::tempdir().unwrap();
    claim(base.path(), &options(Size::Node, "one")).unwrap();
    claim(base.path(), &options(Size::Api, "two")).unwrap();
    claim(base.path(), &options(Size::Cluster, "three")).unwrap();
    let error = claim(base.path(), &options(Size::Node, "four")).unwrap_err();
    assert!(error.to_string().contains("the lab 'one' still has the machine"), "{error:#}");
    let error = claim(base.path(), &options(Size::Api, "two")).unwrap_err();
    assert!(error.to_string().contains("is up already"), "{error:#}");
}

#[test]
fn what_a_killed_lab_left_is_cleaned_up() {
    let base = tempfile::tempdir().unwrap();
    let (dir, mut state) = claim(base.path(), &options(Size::Cluster, "dead")).unwrap();
    std::fs::write(dir.join("logs").join("etcd.log"), "x").unwrap();
    // A process with this pid, but not this start time, is somebody else.
    state.owner = Identity { start: state.owner.start + 1, ..state.owner };
    state.write(&dir).unwrap();
    claim(base.path(), &options(Size::Cluster, "next")).unwrap();
    assert!(!dir.exists());
}
