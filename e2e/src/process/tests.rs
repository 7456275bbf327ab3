use super::*;

fn sleeper(script: &str) -> (tempfile::TempDir, Identity) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let identity = ProcessSpec::new("sleeper", "sh", ["-c", script]).start(&log, false).unwrap();
    let begun = Instant::now();
    while tail(&log, 1) != "ready" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the shell does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    (dir, identity)
}

#[test]
fn a_process_is_known_by_pid_and_start_time() {
    let me = Identity::of_self().unwrap();
    assert!(me.is_alive());
    assert!(!Identity { start: me.start + 1, ..me }.is_alive(), "another process with this pid");
    Identity { start: me.start + 1, ..me }.signal(Signal::SIGKILL).unwrap();
}

#[test]
fn who_ignores_sigterm_is_killed() {
    let (_dir, stubborn) = sleeper("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    stubborn.end(Duration::from_millis(200)).unwrap();
    assert!(!stubborn.is_alive());
    // The second time there is nothing to do.
    stubborn.end(Duration::ZERO).unwrap();
}

#[test]
fn a_stopped_process_can_be_ended() {
    let (_dir, process) = sleeper("echo ready; while :; do sleep 0.05; done");
    process.signal(Signal::SIGSTOP).unwrap();
    process.end(Duration::from_millis(100)).unwrap();
    assert!(!process.is_alive());
}

#[test]
fn a_tail_is_the_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    assert_eq!(tail(&log, 2), "");
    std::fs::write(&log, "a\nb\nc\n").unwrap();
    assert_eq!(tail(&log, 2), "b\nc");
    assert_eq!(tail(&log, 9), "a\nb\nc");
}
