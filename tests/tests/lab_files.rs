//! Lab files: what is wrong with one is said in a line with its place, and nothing is made.

#![allow(clippy::unwrap_used, reason = "panicking is how a test reports")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vdens_tests::Lab;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The lab files in a directory of the repository: name and contents.
fn lab_files(directory: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(repository().join(directory)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

/// Only schemes with a plugin of their own can be opened.
fn strict(lab: &Lab) -> String {
    lab.write("strict", "[plugins]\nlibvdeplug = \"off\"\n")
}

/// What `--json` prints.
fn report(lab: &Lab, file: &str) -> (Option<i32>, Value) {
    let output = lab.vdectl(["lab", "validate", "--json", file]).run();
    assert_eq!(output.stderr, "", "{file}");
    (output.code(), serde_json::from_str(&output.stdout).unwrap())
}

#[test]
fn each_bad_file_is_refused_in_one_line_with_its_place() {
    let lab = Lab::new();
    let config = strict(&lab);
    let files = lab_files("tests/labs/bad");
    assert!(files.len() >= 40, "{}", files.len());
    for (name, contents) in files {
        let text = String::from_utf8_lossy(&contents);
        let expected = text.lines().next().unwrap().strip_prefix("# expect: ");
        let expected = expected.unwrap_or_else(|| panic!("{name} does not say what is expected"));
        let file = lab.write(&name, &contents);
        let validate = lab.vdectl(["--config", &config, "lab", "validate", &name]);
        let output = validate.run();
        assert_eq!(output.code(), Some(1), "{output:?}");
        assert_eq!(output.stderr, format!("{name}:{expected}\n"));
        assert_eq!(output.stdout, "");
        fs::remove_file(file).unwrap();
    }
    // Beside the configuration nothing is there, and the lab's end looks for what is elsewhere.
    let left: Vec<_> = fs::read_dir(lab.dir()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn good_files_are_accepted() {
    let lab = Lab::new();
    let config = strict(&lab);
    for directory in ["tests/labs/good", "docs/labs"] {
        let files = lab_files(directory);
        assert!(files.len() >= 3, "{directory}");
        for (name, contents) in files {
            lab.write(&name, contents);
            let output = lab
                .vdectl(["--config", &config, "lab", "validate", &name])
                .ok();
            assert!(output.starts_with(&format!("{name}: lab ")), "{output}");
            assert_eq!(output.lines().count(), 1, "{output}");
        }
    }
}

#[test]
fn a_lab_is_expanded_as_the_reference_says() {
    let lab = Lab::new();
    for (name, contents) in lab_files("tests/labs/good") {
        lab.write(&name, contents);
    }
    let (status, report_of) = report(&lab, "the-example.toml");
    assert_eq!((status, &report_of["valid"]), (Some(0), &Value::Bool(true)));
    let made = &report_of["lab"];
    let names: Vec<_> = made["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| &node["name"])
        .collect();
    assert_eq!(names.len(), 22);
    assert_eq!(
        (names[0], names[2], names[21]),
        (&"r1".into(), &"h1".into(), &"h20".into())
    );
    let ports = made["switches"][0]["ports"].as_array().unwrap();
    let addresses: Vec<_> = ports
        .iter()
        .map(|port| &port["node"]["addresses"][0])
        .collect();
    // The router's own is skipped.
    assert_eq!(addresses[0], "10.1.0.1/24");
    assert_eq!(
        (addresses[1], addresses[20]),
        (&"10.1.0.2/24".into(), &"10.1.0.21/24".into())
    );
    assert_eq!(
        made["links"][0]["impairments"],
        "delay=20ms/loss=1%/rate=50mbit"
    );
    assert_eq!(
        made["links"][1]["ends"][1]["vnl"],
        "vxlan://192.0.2.7/vni=5"
    );
    assert_eq!(made["tests"][0]["name"], "h1: ping -c 1 -W 2 10.0.0.2");

    let (_, report_of) = report(&lab, "a-line.toml");
    let links = report_of["lab"]["links"].as_array().unwrap();
    assert_eq!(links.len(), 99);
    let last = &links[98]["ends"];
    assert_eq!(last[0]["node"]["interface"], "right");
    assert_eq!(last[0]["node"]["addresses"][0], "10.0.99.1/30");
    assert_eq!(last[1]["node"]["node"], 99);

    let (_, report_of) = report(&lab, "everything.toml");
    let made = &report_of["lab"];
    let router = &made["nodes"][1];
    assert_eq!(router["hostname"], "router-2");
    let commands = [
        "ip link add br2 type bridge",
        "awk '{ print }' /dev/null",
        "echo ${n}",
    ];
    assert_eq!(router["exec"], serde_json::json!(commands));
    // All but itself.
    assert_eq!(made["nodes"][4]["after"], serde_json::json!([0, 1, 2, 3]));
    // The VNL stands first in the file, so its direction is the other.
    let cable = &made["links"][4];
    assert_eq!(cable["ends"][1]["vnl"], "ptp:///tmp/cable-2");
    assert_eq!(cable["impairments"], "rx.loss=2%");
    let tests = made["tests"].as_array().unwrap();
    let names: Vec<_> = tests.iter().map(|test| &test["name"]).collect();
    assert_eq!(
        names,
        [
            "r1: routers have a name",
            "r2: routers have a name",
            "h1: exit 3"
        ]
    );
}

#[test]
fn several_faults_are_reported_at_once_also_as_json() {
    let lab = Lab::new();
    lab.write(
        "x.toml",
        "[nodes.a]\n[[links]]\nends = ['a:e', 'b:e']\n[[links]]\nends = ['a:f', 'a:g']\n",
    );
    let output = lab.vdectl(["lab", "validate", "x.toml"]).run();
    let places: Vec<_> = output.stderr.lines().map(|line| &line[..11]).collect();
    assert_eq!(places, ["x.toml:3:17", "x.toml:5:8:"], "{output:?}");
    let (status, report) = report(&lab, "x.toml");
    assert_eq!((status, &report["valid"]), (Some(1), &Value::Bool(false)));
    let fault = &report["faults"][0];
    assert_eq!((&fault["line"], &fault["column"]), (&3.into(), &17.into()));
    assert_eq!(fault["message"], "there is no node 'b'");
    assert_eq!(fault["hint"], "the nodes are a");
    assert!(report.get("lab").is_none());
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let lab = Lab::new();
    lab.write("long.toml", "#".repeat((1 << 20) + 1));
    lab.mkdir("directory.toml");
    for (file, line) in [
        (
            "missing.toml",
            "cannot read the lab file missing.toml: No such file or directory\n",
        ),
        (
            "directory.toml",
            "cannot read the lab file directory.toml: Is a directory\n",
        ),
        (
            "long.toml",
            "the lab file long.toml is longer than 1 MiB; use count for what is alike\n",
        ),
    ] {
        let output = lab.vdectl(["lab", "validate", file]).run();
        assert_eq!((output.code(), &*output.stderr), (Some(1), line));
    }
}

/// The types of the schema, in the words of the page.
fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap().to_owned();
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let types: Vec<_> = choices.iter().map(type_of).collect();
        return types.join(" or ");
    }
    match &schema["type"] {
        Value::Array(types) => {
            let types: Vec<_> = types.iter().map(word).collect();
            types.join(" or ")
        }
        one if one == "array" => format!("list of {}", type_of(&schema["items"])),
        one if one == "object" => format!("table of {}", type_of(&schema["additionalProperties"])),
        one => word(one).to_owned(),
    }
}

fn word(one: &Value) -> &str {
    match one.as_str().unwrap() {
        "integer" => "number",
        word => word,
    }
}

/// The rows of the page's tables that belong to a type of the schema.
fn rows(name: &str, schema: &Value) -> Vec<String> {
    let required = schema["required"].as_array();
    let row = |(key, schema): (&String, &Value)| {
        let default = match &schema["default"] {
            _ if required.is_some_and(|all| all.contains(&Value::from(key.as_str()))) => {
                "required".to_owned()
            }
            Value::Null => String::new(),
            Value::String(text) => format!("`\"{text}\"`"),
            default => format!("`{default}`"),
        };
        let meaning = schema["description"]
            .as_str()
            .unwrap_or_else(|| panic!("{name}.{key}"));
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("| `{key}` | {} | {default} | {meaning} |", type_of(schema))
    };
    schema["properties"]
        .as_object()
        .unwrap()
        .iter()
        .map(row)
        .collect()
}

/// The page has each key with its type, its default and its meaning, and no other.
#[test]
fn the_reference_has_every_key() {
    let lab = Lab::new();
    let schema: Value = serde_json::from_str(&lab.vdectl(["lab", "schema"]).ok()).unwrap();
    let page = fs::read_to_string(repository().join("docs/lab-file.md")).unwrap();
    let mut expected = rows("the lab", &schema);
    for (name, schema) in schema["$defs"].as_object().unwrap() {
        expected.extend(rows(name, schema));
    }
    let is_row = |line: &&str| line.starts_with("| `") && line.matches(" | ").count() == 3;
    let mut shown: Vec<_> = page.lines().filter(is_row).map(str::to_owned).collect();
    expected.sort();
    shown.sort();
    for row in &expected {
        assert!(shown.contains(row), "docs/lab-file.md lacks the row\n{row}");
    }
    assert_eq!(shown, expected);
}
