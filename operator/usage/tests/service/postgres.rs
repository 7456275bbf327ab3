//! A real PostgreSQL on loopback, in a folder of its own, that ends with those who use it.

use std::io::{Read as _, Seek as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use spillway_usage::store::Place;

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Refuses starting services while packages are installed; `invoke-rc.d` asks it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

pub(crate) struct Server {
    folder: tempfile::TempDir,
    port: u16,
    databases: AtomicU32,
}

/// The one that tests share which do not restart it.
pub(crate) fn shared() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Server::start());
        *shared = Arc::downgrade(&server);
        server
    })
}

impl Server {
    pub(crate) fn start() -> Self {
        install();
        let folder = tempfile::Builder::new().prefix("spillway-postgres-").tempdir().unwrap();
        if is_root() {
            chown(folder.path(), Some(id("-u")), Some(id("-g"))).unwrap();
        }
        let mut server = Self { folder, port: 0, databases: AtomicU32::new(0) };
        let data = server.data();
        run("initdb", &["-D", &data, "-U", "usage", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]);
        server.watch();
        // A port that is free may be taken by the time that the server has it.
        let started = (0..5).any(|_| {
            server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let settings = format!(
                "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nfsync = on\nmax_connections = 100\n",
                server.port
            );
            std::fs::write(format!("{data}/postgresql.auto.conf"), settings).unwrap();
            server.try_control(&["start"]).is_ok()
        });
        assert!(started, "{}", std::fs::read_to_string(server.folder.path().join("log")).unwrap_or_default());
        server
    }

    fn data(&self) -> String {
        self.folder.path().join("data").to_str().unwrap().to_owned()
    }

    fn control(&self, what: &[&str]) {
        self.try_control(what).unwrap();
    }

    fn try_control(&self, what: &[&str]) -> Result<(), String> {
        let (data, log) = (self.data(), self.folder.path().join("log"));
        let fixed = ["-D", &data, "-l", log.to_str().unwrap(), "-w", "-s", "-t", "60"];
        try_run("pg_ctl", &[what, &fixed].concat())
    }

    /// Ends the server, by its id, when this process ends without having done so: by Ctrl-C, say.
    fn watch(&self) {
        let script = r#"while kill -0 "$1" 2>/dev/null; do sleep 1; done
            if pid=$(head -n 1 "$2/data/postmaster.pid" 2>/dev/null); then kill -QUIT "$pid"; sleep 1; rm -rf "$2"; fi"#;
        let watch = Command::new("setsid")
            .args(["sh", "-c", script, "sh", &std::process::id().to_string()])
            .arg(self.folder.path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        drop(watch.unwrap());
    }

    /// As if its machine had lost power, but for its caches; and starts again, which recovers from its log.
    pub(crate) fn restart_immediately(&self) {
        self.control(&["restart", "-m", "immediate"]);
    }

    pub(crate) fn stop_immediately(&self) {
        self.control(&["stop", "-m", "immediate"]);
    }

    pub(crate) fn start_again(&self) {
        self.control(&["start"]);
    }

    pub(crate) fn new_database(&self) -> String {
        let name = format!("usage_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let port = self.port.to_string();
        run("createdb", &["-h", "127.0.0.1", "-p", &port, "-U", "usage", &name]);
        name
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://usage@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    pub(crate) fn place(&self, database: &str) -> Place {
        Place::Postgres { url: self.url(database), authority: None }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Shows this certificate from now on, to who wants TLS.
    pub(crate) fn serve_tls(&self, certificate: &str, key: &str) {
        let data = self.data();
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = format!("{data}/{name}");
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            if is_root() {
                chown(&path, Some(id("-u")), Some(id("-g"))).unwrap();
            }
        }
        let mut settings =
            std::fs::OpenOptions::new().append(true).open(format!("{data}/postgresql.auto.conf")).unwrap();
        settings.write_all(b"ssl = on\n").unwrap();
        self.control(&["restart"]);
    }

    /// Runs SQL by another client than ours.
    pub(crate) fn sql(&self, database: &str, sql: &str) {
        run("psql", &["-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-c", sql]);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By the id in its own folder.
        if Path::new(&self.data()).join("postmaster.pid").exists() {
            self.control(&["stop", "-m", "immediate"]);
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn id(which: &str) -> u32 {
    let output = Command::new("id").args([which, "postgres"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("the package makes the user postgres")
}

/// As the user `postgres` where we are root, which PostgreSQL refuses to run as.
fn run(program: &str, args: &[&str]) {
    try_run(program, args).unwrap();
}

fn try_run(program: &str, args: &[&str]) -> Result<(), String> {
    let program = format!("{BIN}/{program}");
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", &program]);
        command
    } else {
        Command::new(&program)
    };
    // Files, not pipes: a server that is started would hold a pipe open.
    let output = tempfile::tempfile().unwrap();
    let status = command
        .args(args)
        .current_dir("/")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .status()
        .unwrap();
    let (mut output, mut text) = (output, String::new());
    output.rewind().and_then(|()| output.read_to_string(&mut text)).unwrap();
    if status.success() { Ok(()) } else { Err(format!("{program} {}: {status}\n{text}", args.join(" "))) }
}

/// Installs the package where it is missing.
fn install() {
    if Path::new(BIN).join("initdb").exists() {
        return;
    }
    assert!(is_root(), "these tests need a PostgreSQL, and only root can install it: apt-get install postgresql-15");
    let policy_is_ours = !Path::new(POLICY).exists();
    if policy_is_ours {
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").unwrap();
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let apt = |args: &[&str]| {
        let command = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").output().unwrap();
        (command.status.success(), String::from_utf8_lossy(&command.stderr).into_owned())
    };
    apt(&["update", "-q"]);
    let (installed, said) = apt(&["install", "-y", "-q", "--no-install-recommends", "postgresql-15"]);
    if policy_is_ours {
        std::fs::remove_file(POLICY).unwrap();
    }
    assert!(installed, "apt-get install postgresql-15: {said}");
}
