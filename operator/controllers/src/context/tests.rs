use std::time::Duration;

use super::Throttle;

#[test]
fn the_first_passes_and_the_next_waits() {
    let throttle = Throttle::new(Duration::from_secs(3600));
    assert_eq!(throttle.wait("a"), None);
    assert!(throttle.wait("a").is_some_and(|left| left > Duration::from_secs(3000)));
    assert_eq!(throttle.wait("b"), None);
    let open = Throttle::new(Duration::ZERO);
    open.wait("a");
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(open.wait("a"), None);
}
