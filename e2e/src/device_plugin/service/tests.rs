use super::*;
use crate::device_plugin::proto::ContainerAllocateRequest;

#[test]
fn the_last_devices_are_the_broken_ones() {
    let devices = list(Devices { total: 3, broken: 1 }).devices;
    let shown: Vec<_> = devices.iter().map(|device| (device.id.as_str(), device.health.as_str())).collect();
    assert_eq!(shown, [("lab-gpu-0", "Healthy"), ("lab-gpu-1", "Healthy"), ("lab-gpu-2", "Unhealthy")]);
    assert_eq!(list(Devices { total: 1, broken: 5 }).devices.len(), 1);
}

#[test]
fn each_container_gets_the_names_of_its_own_devices() {
    let container =
        |ids: &[&str]| ContainerAllocateRequest { device_ids: ids.iter().map(|id| (*id).to_owned()).collect() };
    let answer = allocate(AllocateRequest {
        container_requests: vec![container(&["lab-gpu-2", "lab-gpu-5"]), container(&["lab-gpu-1"])],
    });
    let names: Vec<_> = answer.container_responses.iter().map(|one| one.envs["LAB_GPUS"].as_str()).collect();
    assert_eq!(names, ["lab-gpu-2,lab-gpu-5", "lab-gpu-1"]);
}
