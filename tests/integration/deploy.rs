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
