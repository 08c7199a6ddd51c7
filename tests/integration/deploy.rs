//! The examples in `deploy/` agree with the defaults of the program: ports, probes, configuration, and the time for a stop.

use std::path::{Path, PathBuf};
use std::process::Command;

use fanfare::cluster::Role;
use fanfare::config::Config;
use fanfare::lifecycle::grace_period_s;

fn example(name: &str) -> String {
    std::fs::read_to_string(Path::new("deploy").join(name)).unwrap()
}

/// What follows `key` on its line, once in a file.
fn after<'a>(text: &'a str, key: &str) -> &'a str {
    let mut found = text.lines().filter_map(|line| line.trim().strip_prefix(key));
    let value = found.next().unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(found.next(), None, "{key} twice");
    value.trim()
}

#[test]
fn both_supervisors_wait_for_a_full_node_and_not_much_longer() {
    let needed = grace_period_s(&Config::default(), Role::All);
    for (name, key) in
        [("fanfare.service", "TimeoutStopSec="), ("kubernetes.yaml", "terminationGracePeriodSeconds:")]
    {
        let text = example(name);
        let given: u64 = after(&text, key).parse().unwrap();
        assert!((needed..=needed + 60).contains(&given), "{name} gives {given} s of {needed} s");
        assert!(text.contains(&format!("= {needed} s with the defaults")), "{name} says another number");
    }
}

#[test]
fn ports_and_probes_are_those_of_the_program() {
    let text = example("kubernetes.yaml");
    let config = Config::default();
    let (edge, admin) = (config.edge.listen.port(), config.admin.listen.port());
    assert!(text.contains(&format!("{{ name: push, containerPort: {edge}, protocol: UDP }}")));
    assert!(text.contains(&format!("{{ name: admin, containerPort: {admin}, protocol: TCP }}")));
    assert_eq!(after(&text, "prometheus.io/port:"), format!("\"{admin}\""));
    for path in ["/readyz", "/livez"] {
        assert!(text.contains(&format!("httpGet: {{ path: {path}, port: admin }}")), "{path}");
    }
}

#[test]
fn the_program_takes_the_configuration_and_the_command_of_the_examples() {
    let text = example("kubernetes.yaml");
    let (_, block) = text.split_once("fanfare.toml: |\n").unwrap();
    let lines = block.lines().map_while(|line| line.strip_prefix("    "));
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("fanfare.toml");
    std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let config = fanfare::config::load(std::slice::from_ref(&file)).unwrap();
    assert_eq!(config.admin.listen, ([0, 0, 0, 0], Config::default().admin.listen.port()).into());

    let unit = example("fanfare.service");
    let command = after(&unit, "ExecStart=/usr/local/bin/fanfare");
    let quoted: Vec<String> = command.split(' ').map(|word| format!("{word:?}")).collect();
    assert_eq!(after(&text, "args:"), format!("[{}]", quoted.join(", ")), "the same command");
    let here = command.replace("/etc/fanfare/fanfare.toml", file.to_str().unwrap());
    let program = env!("CARGO_BIN_EXE_fanfare");
    let help = Command::new(program).args(here.split(' ')).arg("--help").output().unwrap();
    assert!(help.status.success(), "{command}: {help:?}");
}

/// The Deployments of the example with roles, edges first, each with what is above it.
fn roles() -> [String; 2] {
    let text = example("kubernetes-roles.yaml");
    let (edges, workers) = text.split_once("\n---\n").unwrap();
    [edges, workers].map(str::to_owned)
}

#[test]
fn each_role_has_its_command_and_the_time_that_it_needs() {
    for (text, role) in roles().iter().zip([Role::Edge, Role::Worker]) {
        let config = "\"--config\", \"/etc/fanfare/fanfare.toml\"";
        assert_eq!(after(text, "args:"), format!("[{config}, \"serve\", \"--role\", \"{role}\"]"));
        let needed = grace_period_s(&Config::default(), role);
        let given: u64 = after(text, "terminationGracePeriodSeconds:").parse().unwrap();
        assert!((needed..=needed + 60).contains(&given), "{role}: {given} s of {needed} s");
    }
    let [_, workers] = roles();
    let needed = grace_period_s(&Config::default(), Role::Worker);
    assert!(workers.contains(&format!("= {needed} s with the defaults")), "it says another number");
}

#[test]
fn edges_are_the_nodes_of_the_other_example_and_workers_have_no_keys_and_no_way_in() {
    let whole = example("kubernetes.yaml");
    let [edges, workers] = roles();
    let lines = |text: &str| {
        let (_, deployment) = text.split_once("kind: Deployment\n").unwrap();
        let end = deployment.split("\n---\n").next().unwrap();
        let lines = end.lines().filter(|line| !line.trim_start().starts_with('#'));
        let lines = lines.filter(|line| !line.trim_start().starts_with("args:"));
        lines.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&edges), lines(&whole));
    for secret in ["fanfare-tls", "fanfare-tokens", "UDP", "{ app: fanfare }"] {
        let lines = workers.lines().filter(|line| !line.trim_start().starts_with('#'));
        assert!(!lines.collect::<String>().contains(secret), "{secret}");
    }
}
