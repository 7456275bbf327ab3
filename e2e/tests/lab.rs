//! The lab itself, one smoke test for each size. Needs root for the node size.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use spillway_lab::{FakeNode, Lab, LabOptions, Signal, Size};

/// Pods of this namespace are the tests' own.
const NAMESPACE: &str = "default";

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("an object of this test")
}

async fn wait_for_phase(lab: &Lab, pod: &str, phase: &str) -> Result<()> {
    let pods = Api::<Pod>::namespaced(lab.client()?, NAMESPACE);
    lab.wait_for(&format!("pod {pod} to be {phase}"), Duration::from_secs(60), || async {
        Ok(pods.get(pod).await?.status.and_then(|status| status.phase).as_deref() == Some(phase))
    })
    .await
}

#[tokio::test]
async fn two_api_labs_live_side_by_side() -> Result<()> {
    let (one, two) = tokio::join!(Lab::start(LabOptions::new(Size::Api)), Lab::start(LabOptions::new(Size::Api)));
    let (one, two) = (one?, two?);
    assert_ne!(one.server(), two.server());

    let namespace = object::<Namespace>(json!({"metadata": {"name": "only-in-one"}}))?;
    Api::<Namespace>::all(one.client()?).create(&PostParams::default(), &namespace).await?;
    assert!(Api::<Namespace>::all(one.client()?).get_opt("only-in-one").await?.is_some());
    assert!(Api::<Namespace>::all(two.client()?).get_opt("only-in-one").await?.is_none());

    // Impersonation: who may do nothing is refused, who is master may.
    let nobody = Api::<Namespace>::all(one.client_as("nobody", &[], &[])?).get("default").await;
    assert!(matches!(nobody, Err(kube::Error::Api(status)) if status.code == 403));
    let who = one.kubectl(&["auth", "whoami", "-o", "json"]).await?;
    assert!(
        who.contains("lab:admin") && who.contains("system:masters") && !who.contains("spillway:break-glass"),
        "{who}"
    );

    let (one_dir, two_dir) = (one.dir().to_owned(), two.dir().to_owned());
    let pids: Vec<i32> = one.processes().iter().map(|name| one.pid(name)).collect::<Result<_>>()?;
    let before: Vec<_> = pids.iter().map(|pid| living(*pid)).collect();
    one.stop()?;
    two.stop()?;
    assert!(!one_dir.exists() && !two_dir.exists());
    let left: Vec<_> =
        pids.iter().zip(before).filter(|(pid, before)| before.is_some() && living(**pid) == *before).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// When a process started, in clock ticks since boot; none for one that is gone or dead and not yet collected by its parent. A pid alone says
/// nothing: the kernel gives it to somebody else.
fn living(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    (!matches!(*fields.first()?, "Z" | "X")).then(|| fields.get(19).map(|start| (*start).to_owned()))?
}

#[tokio::test]
async fn a_client_may_be_anybody_with_any_extra() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Api)).await?;
    let client = lab.client_as(
        "somebody",
        &["some-group", "system:masters"],
        &[("authentication.kubernetes.io/node-name", "n-0")],
    )?;
    let review: Value = client
        .request(
            tonic::codegen::http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
                .header("content-type", "application/json")
                .body(
                    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
                        .to_string()
                        .into_bytes(),
                )?,
        )
        .await?;
    let user = &review["status"]["userInfo"];
    assert_eq!(user["username"], "somebody");
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["n-0"]));
    assert!(user["groups"].as_array().is_some_and(|groups| groups.contains(&json!("some-group"))));

    let kubeconfig = lab.kubeconfig_for("system:serviceaccount:ns:operator", &["system:serviceaccounts", "second"])?;
    let path = kubeconfig.to_string_lossy().into_owned();
    let who = lab.kubectl(&["--kubeconfig", &path, "auth", "whoami"]).await?;
    assert!(
        who.contains("system:serviceaccount:ns:operator")
            && who.contains("system:serviceaccounts")
            && who.contains("second"),
        "{who}"
    );
    lab.stop()
}

#[tokio::test]
async fn a_cluster_lab_runs_pods_on_fake_nodes() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
    let csv = "sn,cpu_milli,memory_mib,gpu,model\nfake-1,96000,393216,8,G2\nfake-2,32000,131072,4,V100M16\n";
    let mut nodes = FakeNode::read_csv(csv.as_bytes())?;
    nodes.push(FakeNode::new("fake-3", "H100").label("spillway.dev/pool", "h100"));
    lab.add_fake_nodes(&nodes).await?;

    let pod = object::<Pod>(json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeSelector": {"nvidia.com/gpu.product": "H100"},
            "containers": [{"name": "c", "image": "localhost/none", "resources": {"limits": {"nvidia.com/gpu": "8"}}}],
        },
    }))?;
    let pods = Api::<Pod>::namespaced(lab.client()?, NAMESPACE);
    pods.create(&PostParams::default(), &pod).await?;
    wait_for_phase(&lab, "p", "Running").await?;
    assert_eq!(pods.get("p").await?.spec.and_then(|spec| spec.node_name).as_deref(), Some("fake-3"));

    // Processes stop and go on by name.
    lab.signal("kube-scheduler", Signal::SIGSTOP)?;
    lab.apply_yaml(
        "{apiVersion: v1, kind: Pod, metadata: {name: q}, spec: {containers: [{name: c, image: localhost/none}]}}",
    )
    .await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(pods.get("q").await?.spec.and_then(|spec| spec.node_name), None);
    lab.signal("kube-scheduler", Signal::SIGCONT)?;
    wait_for_phase(&lab, "q", "Running").await?;
    lab.kill_process("kwok")?;
    assert!(!lab.is_running("kwok"));
    lab.start_process("kwok")?;
    assert!(lab.is_running("kwok"));

    let releases = lab.helm(&["list", "-A"]).await?;
    assert!(releases.starts_with("NAME"), "{releases}");
    let dir = lab.dir().to_owned();
    lab.stop()?;
    assert!(!dir.exists());
    Ok(())
}

/// What is left of a lab on this machine: its folder, processes that name the folder, its bridge, table and cgroups, mounts below the folder.
fn leftovers(dir: &Path) -> Result<Vec<String>> {
    let name = dir.to_string_lossy().into_owned();
    let links = ["spillway0", "spillway-n0", "spillway-n1"].map(|link| Path::new("/sys/class/net").join(link));
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    let cgroups = hierarchies.flat_map(|path| [path.join("spillway-lab-0"), path.join("spillway-lab-1")]);
    let paths = std::iter::once(dir.to_owned()).chain(links).chain(cgroups);
    let mut left: Vec<String> = paths.filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&name) {
            left.push(format!("process {}: {command}", process.file_name().display()));
        }
    }
    let tables = std::process::Command::new("nft").args(["list", "tables"]).output()?.stdout;
    let tables = String::from_utf8_lossy(&tables).into_owned();
    left.extend(tables.lines().filter(|table| table.contains("spillway")).map(str::to_owned));
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    left.extend(mounts.lines().filter(|mount| mount.contains(&name)).map(str::to_owned));
    Ok(left)
}

#[tokio::test]
#[ignore = "half a minute, and the demo does the same with the real list: run it when kwok or the stages change"]
async fn a_thousand_fake_nodes_come_up() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Cluster)).await?;
    let nodes: Vec<FakeNode> = (0..1_213).map(|number| FakeNode::new(&format!("fake-{number:04}"), "G2")).collect();
    lab.add_fake_nodes(&nodes).await?;
    lab.stop()
}

#[tokio::test]
async fn a_node_lab_runs_real_containers_and_leaves_nothing() -> Result<()> {
    let options = LabOptions::new(Size::Node)
        .real_nodes(2)
        .node_label("lab/kind", "real")
        .node_taint("lab/closed=yes:NoSchedule");
    let lab = Lab::start(options).await?;
    assert_eq!(lab.real_nodes(), ["lab-node-0", "lab-node-1"]);
    let nodes =
        lab.kubectl(&["get", "nodes", "-l", "lab/kind=real", "-o", "jsonpath={.items[*].spec.taints[*].key}"]).await?;
    assert_eq!(nodes, "lab/closed lab/closed");

    // One pod on each node: GPUs by the device plugin, the API server by its Service's address, one pod by the other's Service.
    let pod = |name: &str, node: &str, script: &str, gpus: &str| {
        object::<Pod>(json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": node},
                "tolerations": [{"key": "lab/closed", "operator": "Exists"}],
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "c", "image": "localhost/busybox:dev", "command": ["sh", "-c", script],
                    "resources": {"limits": {"nvidia.com/gpu": gpus}},
                }],
            },
        }))
    };
    let pods = Api::<Pod>::namespaced(lab.client()?, NAMESPACE);
    let server = "echo $LAB_GPUS > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    pods.create(&PostParams::default(), &pod("server", "lab-node-0", server, "3")?).await?;
    lab.apply_yaml("{apiVersion: v1, kind: Service, metadata: {name: server}, spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}}")
        .await?;
    wait_for_phase(&lab, "server", "Running").await?;
    let service = lab.kubectl(&["get", "service", "server", "-o", "jsonpath={.spec.clusterIP}"]).await?;
    let client = format!(
        "echo gpus=$LAB_GPUS; get() {{ printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {service} 80; }}; \
         until get | grep lab-gpu; do sleep 0.2; done; \
         nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo api-reached; \
         nc -w 2 192.0.2.1 53 </dev/null 2>/dev/null || echo no-way-out"
    );
    pods.create(&PostParams::default(), &pod("client", "lab-node-1", &client, "8")?).await?;
    wait_for_phase(&lab, "client", "Succeeded").await?;
    let log = lab.kubectl(&["logs", "client"]).await?;
    let lines: Vec<&str> = log.lines().collect();
    let devices = |text: &str| text.split(',').filter(|device| device.starts_with("lab-gpu-")).count();
    assert_eq!(lines.first().map(|line| devices(line.trim_start_matches("gpus="))), Some(8), "{log}");
    assert_eq!(lines.get(1).map(|line| devices(line)), Some(3), "{log}");
    assert_eq!(lines.get(2..), Some(["api-reached", "no-way-out"].as_slice()), "{log}");

    // From this machine: a Service, exec, and the containers that containerd really has.
    let seen = reqwest::get(format!("http://{service}/")).await?.text().await?;
    assert_eq!(devices(seen.trim()), 3);
    assert_eq!(lab.kubectl(&["exec", "server", "--", "cat", "/tmp/index.html"]).await?, seen);
    assert!(lab.ctr(0, &["containers", "list"]).await?.contains("localhost/busybox:dev"));

    // Pods that ask the container runtime find it where it is on any node.
    let host_path = r#"{apiVersion: v1, kind: Pod, metadata: {name: runtime}, spec: {restartPolicy: Never, nodeName: lab-node-1,
      containers: [{name: c, image: 'localhost/busybox:dev', command: [test, -S, /cri/containerd.sock], volumeMounts: [{name: cri, mountPath: /cri}]}],
      volumes: [{name: cri, hostPath: {path: /run/containerd, type: Directory}}]}}"#;
    lab.apply_yaml(host_path).await?;
    wait_for_phase(&lab, "runtime", "Succeeded").await?;

    // Devices that break or vanish are seen; a kubelet that starts again gets them back.
    lab.set_devices(1, 6, 2)?;
    lab.wait_for("the node to offer 4 devices", Duration::from_secs(60), || lab.node_offers(1, 4)).await?;
    lab.kill_process("kubelet-1")?;
    lab.set_devices(1, 8, 0)?;
    lab.start_process("kubelet-1")?;
    lab.wait_for("the node to offer 8 devices", Duration::from_secs(60), || lab.node_offers(1, 8)).await?;

    let dir = lab.dir().to_owned();
    assert_ne!(leftovers(&dir)?, [""; 0], "the check for leftovers sees nothing");
    lab.stop()?;
    assert_eq!(leftovers(&dir)?, [""; 0]);
    Ok(())
}

/// Not a test: [`a_killed_test_leaves_nothing`] runs and kills it.
#[tokio::test]
#[ignore = "only started by a_killed_test_leaves_nothing"]
async fn holds_a_lab_until_killed() -> Result<()> {
    let lab = Lab::start(LabOptions::new(Size::Node).named("to-be-killed")).await?;
    let manifest = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: 'localhost/busybox:dev', command: [sleep, '3600']}]}}";
    lab.apply_yaml(manifest).await?;
    wait_for_phase(&lab, "p", "Running").await?;
    std::fs::write(lab.dir().join("running"), "")?;
    std::future::pending().await
}

#[tokio::test]
async fn a_killed_test_leaves_nothing() -> Result<()> {
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "holds_a_lab_until_killed", "--ignored"])
        .kill_on_drop(true)
        .spawn()?;
    let dir = spillway_lab::paths::base_dir().join("to-be-killed");
    spillway_lab::wait_for("the other test's lab to run", Duration::from_secs(120), || async {
        Ok(dir.join("running").exists())
    })
    .await?;
    child.kill().await?;
    let gone = spillway_lab::wait_for("the guard to clean up", Duration::from_secs(30), || async {
        Ok(leftovers(&dir)?.is_empty())
    })
    .await;
    assert!(gone.is_ok(), "left over: {:#?}", leftovers(&dir)?);
    Ok(())
}
