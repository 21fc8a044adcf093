//! Control group limits.

use serde_json::json;
use vmpod_agent::container::{Containers as _, ProcessName};
use vmpod_agent_protocol::messages::EventKind;

use crate::fixture::Fixture;

pub async fn process_limit_stops_a_fork_bomb(fixture: Fixture) {
    fixture.need_controller("pids");
    let script = "i=0; while [ $i -lt 50 ]; do sleep 1000 & i=$((i+1)); done; echo all";
    let mut spec = fixture.spec("bomb", script);
    spec["linux"]["resources"]["pids"] = json!({"limit": 20});
    let name = fixture.launch("bomb", &spec).await;
    let (status, output) = fixture.finish(&name).await;
    assert_ne!(status.code, 0);
    assert!(output.contains("can't fork"), "{output}");
}

pub async fn container_over_its_memory_is_reported_as_killed(fixture: Fixture) {
    fixture.need_controller("memory");
    // dd's one block is its memory.
    let mut spec = fixture.spec(
        "greedy",
        "dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived $?",
    );
    spec["process"]["args"] = json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
    let (status, output) = fixture.complete("greedy", &spec).await;
    assert!(status.oom_killed, "{status} {output}");
    assert_eq!((status.code, status.reason.as_str()), (137, "OOMKilled"));
    let events = fixture.engine.events().next(0, 0).await.events;
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event.kind.enum_value_or_default())
        .collect();
    let oom = kinds
        .iter()
        .position(|kind| *kind == EventKind::CONTAINER_OOM);
    let exited = kinds
        .iter()
        .position(|kind| *kind == EventKind::CONTAINER_EXITED);
    assert!(oom.is_some() && oom < exited, "{kinds:?}");
}

pub async fn limits_can_be_changed_while_it_runs(fixture: Fixture) {
    fixture.need_controller("memory");
    fixture.need_controller("cpu");
    let mut spec = fixture.spec("flexible", "sleep 1000");
    spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    spec["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 20000, "period": 100000});
    fixture.launch("flexible", &spec).await;
    let group = fixture.groups.join("flexible");
    let read = |file: &str| std::fs::read_to_string(group.join(file)).unwrap();
    assert_eq!(read("memory.max").trim(), "67108864");
    assert_eq!(read("cpu.max").trim(), "20000 100000");
    fixture
        .engine
        .update(
            "flexible",
            br#"{"memory":{"limit":134217728},"cpu":{"quota":-1}}"#,
        )
        .unwrap();
    assert_eq!(read("memory.max").trim(), "134217728");
    assert_eq!(read("cpu.max").trim(), "max 100000");
    let statistics = fixture.engine.statistics("flexible").unwrap();
    let container = statistics.containers.first().unwrap();
    assert_eq!(container.memory_limit, 134_217_728);
    assert!(container.memory_usage > 0 && container.pids_current >= 1);
    assert!(statistics.memory_total > 0);
    let name = ProcessName::container("flexible");
    fixture.engine.signal(&name, 9, false).unwrap();
    fixture.engine.wait(&name).await.unwrap();
}
