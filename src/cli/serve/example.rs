//! A curl line that works, made of a model's golden samples or, where it has none, of zeros.

use crate::api::json::Writer;
use crate::cli::healthcheck::reachable;
use crate::config::{Endpoint, Settings};
use crate::engine::{Signature, Tensor};
use crate::serve::{Golden, Repository, Servable};

/// Longer ones are no example any more: a terminal shows a few lines.
const BODY_MAX: usize = 1000;

/// The line for the default model, or else for the first one whose inputs are short enough to be shown.
pub(super) fn curl(repository: &Repository, settings: &Settings, endpoints: &[Endpoint]) -> Option<String> {
    let server = server(endpoints.first()?, settings);
    if let Ok(handle) = repository.default_model()
        && let Some(body) = body(&handle, settings)
    {
        return Some(line(&format!("{server}/predict"), &body));
    }
    let versions = repository.list().into_iter().flat_map(|model| model.versions);
    versions.filter_map(|version| version.state.servable().cloned()).find_map(|servable| {
        let body = body(&servable, settings)?;
        Some(line(&format!("{server}/v1/models/{}:predict", servable.name()), &body))
    })
}

/// What stands before the path: where the server is, and how curl is let in.
fn server(endpoint: &Endpoint, settings: &Settings) -> String {
    let key = if settings.keys_file.is_some() { "-H \"X-API-Key: $KEY\" " } else { "" };
    match endpoint {
        Endpoint::Http(address) => format!("{key}http://{}", reachable(*address)),
        Endpoint::Https(address) => format!("{key}--insecure https://{}", reachable(*address)),
        Endpoint::Unix(path) => format!("{key}--unix-socket {} http://localhost", path.display()),
    }
}

fn line(url: &str, body: &str) -> String {
    format!("curl {url} -d '{}'", body.replace('\'', r"'\''"))
}

/// The body of a request for one row; `None` if there is no sample, or it is too long.
fn body(servable: &Servable, settings: &Settings) -> Option<String> {
    let golden = Golden::read(&settings.models.join(servable.name()).join("golden")).ok().flatten();
    let inputs = match golden {
        Some(golden) => golden.inputs,
        None => zeros(servable.signature())?,
    };
    let body = write(servable.signature(), &inputs);
    (body.len() <= BODY_MAX).then_some(body)
}

fn zeros(signature: &Signature) -> Option<Vec<Tensor>> {
    let shapes = signature.batch_shapes(1)?;
    let zero = |(port, shape): (&crate::engine::Port, &crate::engine::Shape)| Some(Tensor::zeros(port.kind.dtype()?, shape));
    signature.inputs.iter().zip(&shapes).map(zero).collect()
}

/// By rows where the model has rows and one input, by columns otherwise.
fn write(signature: &Signature, inputs: &[Tensor]) -> String {
    let row = |tensor: &Tensor| if signature.batchable { tensor.rows(0..1) } else { tensor.clone() };
    let mut writer = Writer::default();
    match inputs {
        [only] if signature.batchable => {
            writer.raw("{\"instances\": ").tensor(&row(only)).raw("}");
        }
        _ => {
            writer.raw("{\"inputs\": {").list(signature.inputs.iter().zip(inputs), |writer, (port, tensor)| {
                writer.key(&port.name).tensor(&row(tensor));
            });
            writer.raw("}}");
        }
    }
    String::from_utf8(writer.into_bytes()).expect("JSON is text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{DType, Dim, Kind, Port};

    fn signature(names: &[&str], batchable: bool) -> Signature {
        let dims = Some(vec![Dim::Free("batch".into()), Dim::Fixed(2)]);
        let port = |name: &&str| Port { name: (*name).to_owned(), kind: Kind::Tensor(DType::F32), dims: dims.clone() };
        Signature { inputs: names.iter().map(port).collect(), batchable, ..Signature::default() }
    }

    #[test]
    fn one_row_of_one_input_is_an_instance() {
        let x = Tensor::new(&[2, 2], vec![1.0_f32, 2.5, 3.0, 4.0]).unwrap();
        assert_eq!(write(&signature(&["x"], true), std::slice::from_ref(&x)), r#"{"instances": [[1.0,2.5]]}"#);
        assert_eq!(write(&signature(&["x"], false), std::slice::from_ref(&x)), r#"{"inputs": {"x":[[1.0,2.5],[3.0,4.0]]}}"#);
        assert_eq!(write(&signature(&["x", "y"], true), &[x.clone(), x]), r#"{"inputs": {"x":[[1.0,2.5]],"y":[[1.0,2.5]]}}"#);
    }

    #[test]
    fn a_quote_does_not_end_the_argument() {
        assert_eq!(line("u", "it's"), r"curl u -d 'it'\''s'");
    }
}
