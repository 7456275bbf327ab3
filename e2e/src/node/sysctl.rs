//! Kernel settings that a kubelet changes for the whole machine. The lab puts them back.

use std::collections::BTreeMap;

const CHANGED_BY_KUBELET: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

/// What they are now.
pub(crate) fn current() -> BTreeMap<String, String> {
    let read = |path: &str| Some((path.to_owned(), std::fs::read_to_string(path).ok()?.trim().to_owned()));
    CHANGED_BY_KUBELET.into_iter().filter_map(read).collect()
}

/// Makes them what they were.
pub(crate) fn restore(settings: &BTreeMap<String, String>) {
    for (path, value) in settings {
        if std::fs::read_to_string(path).is_ok_and(|now| now.trim() != value) {
            // A setting that cannot be written was not changed by the kubelet either.
            let _ = std::fs::write(path, value);
        }
    }
}
