//! Points at which a test ends the process, to show that a crash there loses nothing. Compiled in only with the feature `kill-points`.

/// Names of all points, in the order in which a sale meets them.
pub const POINTS: &[&str] = &[
    "commit.before-pages",
    "commit.after-pages",
    "commit.after-root",
    "commit.before-publish",
    "collect.after-list",
    "collect.after-root",
    "collect.after-one-delete",
    "node.before-closed",
    "node.after-closed",
    "node.after-drain",
    "node.after-ask",
    "node.before-hold",
    "node.after-hold",
    "node.before-share",
    "node.after-share",
    "node.before-unsold",
    "node.after-unsold",
    "reservation.before-status",
    "reservation.after-status",
    "reservation.before-finalizer",
    "tenant.after-labels",
    "assign.before-record",
    "assign.after-record",
    "assign.after-toleration",
];

/// Points that only an operator with a usage service meets, when bookings ended.
pub const ARCHIVE_POINTS: &[&str] = &["archive.after-post", "archive.after-note"];

/// Points that only the layout of an endpoint meets.
pub const ENDPOINT_POINTS: &[&str] = &[
    "endpoint.after-burst",
    "endpoint.after-burst-end",
    "endpoint.after-apply",
    "endpoint.before-prune",
    "endpoint.after-shrink",
    "endpoint.after-delete",
    "endpoint.before-status",
];

/// Ends the process with status 137 when the variable `SPILLWAY_KILL_AT` names this point. Does nothing in a shipped binary.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "kill-points")]
    if std::env::var("SPILLWAY_KILL_AT").is_ok_and(|at| at == name) {
        tracing::error!(name, "kill point");
        std::process::exit(137);
    }
    #[cfg(not(feature = "kill-points"))]
    let _ = name;
}
