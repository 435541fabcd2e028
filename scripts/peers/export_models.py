#!/usr/bin/env python3
"""Export the benchmark models to ONNX (opset 17, dynamic batch), with inputs and ONNX Runtime's answers.

Random weights, real architectures: what is measured is the engine, and outputs are still comparable.
Writes OUT/<name>/model.onnx and OUT/<name>/b<batch>/{input_i.pb,output_i.pb} (the ONNX test-data layout).

    "$(scripts/peers/env.sh)" scripts/peers/export_models.py --out target/peers [names…]          # about 4 GB, 10 minutes on 2 cores

A model that is there already is left alone.
"""
import argparse, os, traceback, warnings
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from onnx import numpy_helper

warnings.filterwarnings("ignore")
torch.manual_seed(0); np.random.seed(0)
torch.backends.mha.set_fastpath_enabled(False)
os.environ["HF_HUB_OFFLINE"] = "1"
OUT = "models"

def path(name):
    os.makedirs(f"{OUT}/{name}", exist_ok=True)
    return f"{OUT}/{name}/model.onnx"

def exp(name, mod, args, inn, outn, dyn, opset=17):
    mod.eval()
    with torch.no_grad():
        torch.onnx.export(mod, args, path(name), input_names=inn, output_names=outn, dynamic_axes=dyn, opset_version=opset, dynamo=False, do_constant_folding=True)
    print("ok", name, os.path.getsize(path(name)) // 1024, "KiB", flush=True)
def bd(*names): return {n:{0:"batch"} for n in names}
jobs={}
def job(f): jobs[f.__name__]=f; return f
@job
def mlp(): exp("mlp", nn.Sequential(nn.Linear(784,512),nn.ReLU(),nn.Linear(512,256),nn.ReLU(),nn.Linear(256,10)), (torch.randn(2,784),), ["x"],["y"],bd("x","y"))
@job
def lenet():
    exp("lenet", nn.Sequential(nn.Conv2d(1,32,3,padding=1),nn.ReLU(),nn.MaxPool2d(2),nn.Conv2d(32,64,3,padding=1),nn.ReLU(),nn.MaxPool2d(2),nn.Flatten(),nn.Linear(64*49,128),nn.ReLU(),nn.Linear(128,10)),(torch.randn(2,1,28,28),),["x"],["y"],bd("x","y"))
def tv(name, fn):
    import torchvision.models as tm
    m=getattr(tm,fn)(weights=None)
    # make BN running stats non trivial & activations sane
    for mm in m.modules():
        if isinstance(mm, nn.BatchNorm2d):
            mm.running_mean.normal_(0,0.1); mm.running_var.uniform_(0.5,1.5); mm.weight.data.uniform_(0.5,1.0)
    if name=="vit_b_16": nn.init.normal_(m.heads.head.weight,0,0.02); nn.init.normal_(m.class_token,0,0.02)
    exp(name, m,(torch.randn(2,3,224,224),),["x"],["y"],bd("x","y"))
@job
def resnet50(): tv("resnet50","resnet50")
@job
def mobilenet_v2(): tv("mobilenet_v2","mobilenet_v2")
@job
def efficientnet_b0(): tv("efficientnet_b0","efficientnet_b0")
@job
def vit_b_16(): tv("vit_b_16","vit_b_16")
class W(nn.Module):
    def __init__(s,m,f): super().__init__(); s.m=m; s.f=f
    def forward(s,*a): return s.f(s.m,*a)
def seqdyn(*n): return {k:{0:"batch",1:"seq"} for k in n}
@job
def bert_base():
    from transformers import BertConfig, BertForSequenceClassification
    m=BertForSequenceClassification(BertConfig(attn_implementation="eager",num_labels=2))
    i=torch.randint(0,30000,(2,128)); a=torch.ones_like(i); t=torch.zeros_like(i)
    exp("bert_base",W(m,lambda m,i,a,t:m(input_ids=i,attention_mask=a,token_type_ids=t).logits),(i,a,t),["input_ids","attention_mask","token_type_ids"],["logits"],{**seqdyn("input_ids","attention_mask","token_type_ids"),"logits":{0:"batch"}})
@job
def minilm_l6():
    from transformers import BertConfig, BertModel
    m=BertModel(BertConfig(hidden_size=384,num_hidden_layers=6,num_attention_heads=12,intermediate_size=1536,attn_implementation="eager"),add_pooling_layer=False)
    i=torch.randint(0,30000,(2,128)); a=torch.ones_like(i); t=torch.zeros_like(i)
    exp("minilm_l6",W(m,lambda m,i,a,t:m(input_ids=i,attention_mask=a,token_type_ids=t).last_hidden_state),(i,a,t),["input_ids","attention_mask","token_type_ids"],["last_hidden_state"],{**seqdyn("input_ids","attention_mask","token_type_ids"),"last_hidden_state":{0:"batch",1:"seq"}})
@job
def distilbert():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification
    m=DistilBertForSequenceClassification(DistilBertConfig(attn_implementation="eager",num_labels=2))
    i=torch.randint(0,30000,(2,128)); a=torch.ones_like(i)
    exp("distilbert",W(m,lambda m,i,a:m(input_ids=i,attention_mask=a).logits),(i,a),["input_ids","attention_mask"],["logits"],{**seqdyn("input_ids","attention_mask"),"logits":{0:"batch"}})
# GPT-2 124M hand-written with explicit KV cache (architecture identical to GPT-2 small)
class GPT2(nn.Module):
    def __init__(s,L=12,H=12,D=768,V=50257,P=1024):
        super().__init__(); s.L,s.H,s.D=L,H,D
        s.wte=nn.Embedding(V,D); s.wpe=nn.Embedding(P,D)
        s.h=nn.ModuleList([nn.ModuleDict(dict(ln1=nn.LayerNorm(D),qkv=nn.Linear(D,3*D),o=nn.Linear(D,D),ln2=nn.LayerNorm(D),fc=nn.Linear(D,4*D),pr=nn.Linear(4*D,D))) for _ in range(L)])
        s.lnf=nn.LayerNorm(D); s.head=nn.Linear(D,V,bias=False); s.head.weight=s.wte.weight
        for p in s.parameters():
            if p.dim()>1: nn.init.normal_(p,0,0.02)
    def forward(s,ids,*past):
        B,T=ids.shape; pl=past[0].shape[2] if past else 0
        pos=torch.arange(0,T,device=ids.device)+pl
        x=s.wte(ids)+s.wpe(pos)
        kv=[]
        i=torch.arange(T).unsqueeze(1)+pl; j=torch.arange(T+pl).unsqueeze(0)
        mask=torch.where(j<=i,0.0,-10000.0)
        for n,b in enumerate(s.h):
            q,k,v=b["qkv"](b["ln1"](x)).split(s.D,2)
            q,k,v=[z.view(B,T,s.H,s.D//s.H).transpose(1,2) for z in (q,k,v)]
            if past: k=torch.cat([past[2*n],k],2); v=torch.cat([past[2*n+1],v],2)
            kv+= [k,v]
            a=(q@k.transpose(-1,-2))*(1.0/8.0)+mask
            a=torch.softmax(a,-1)@v
            a=a.transpose(1,2).reshape(B,T,s.D)
            x=x+b["o"](a)
            h=b["fc"](b["ln2"](x)); h=0.5*h*(1+torch.tanh(0.7978845608*(h+0.044715*h*h*h)))
            x=x+b["pr"](h)
        return (s.head(s.lnf(x)),)+(tuple(kv) if past else ())
@job
def gpt2_prefill():
    torch.manual_seed(1)
    exp("gpt2_prefill",GPT2(),(torch.randint(0,50000,(2,64)),),["input_ids"],["logits"],seqdyn("input_ids","logits"))
@job
def gpt2_decode():
    torch.manual_seed(1)
    past=[torch.randn(2,12,16,64) for _ in range(24)]
    pn=[f"past_{i//2}_{'kv'[i%2]}" for i in range(24)]; on=[f"present_{i//2}_{'kv'[i%2]}" for i in range(24)]
    dyn={"input_ids":{0:"batch"},"logits":{0:"batch"}}
    for p in pn: dyn[p]={0:"batch",2:"past"}
    for p in on: dyn[p]={0:"batch",2:"total"}
    exp("gpt2_decode",GPT2(),(torch.randint(0,50000,(2,1)),*past),["input_ids"]+pn,["logits"]+on,dyn)
@job
def yolov8n():
    from ultralytics import YOLO
    m=YOLO("yolov8n.yaml").model
    m.eval()
    try: m.fuse(verbose=False)
    except Exception as ex: print("fuse",ex)
    d=m.model[-1]; d.export=True; d.format="onnx"; d.dynamic=True
    exp("yolov8n",m,(torch.randn(2,3,640,640),),["images"],["output0"],bd("images","output0"))
class DeepFM(nn.Module):
    def __init__(s,N=26,R=10000,D=16,ND=13):
        super().__init__()
        s.emb=nn.ModuleList([nn.Embedding(R,D) for _ in range(N)]); s.lin=nn.ModuleList([nn.Embedding(R,1) for _ in range(N)])
        s.dl=nn.Linear(ND,1)
        s.mlp=nn.Sequential(nn.Linear(N*D+ND,400),nn.ReLU(),nn.Linear(400,400),nn.ReLU(),nn.Linear(400,400),nn.ReLU(),nn.Linear(400,1))
    def forward(s,cat,dense):
        e=torch.stack([m(cat[:,i]) for i,m in enumerate(s.emb)],1)
        l=torch.cat([m(cat[:,i]) for i,m in enumerate(s.lin)],1).sum(1,keepdim=True)+s.dl(dense)
        fm=0.5*(e.sum(1).pow(2)-e.pow(2).sum(1)).sum(1,keepdim=True)
        d=s.mlp(torch.cat([e.flatten(1),dense],1))
        return torch.sigmoid(l+fm+d)
@job
def deepfm(): exp("deepfm",DeepFM(),(torch.randint(0,10000,(2,26)),torch.rand(2,13)),["cat","dense"],["prob"],bd("cat","dense","prob"))
class DIN(nn.Module):
    def __init__(s,R=50000,D=32):
        super().__init__()
        s.item=nn.Embedding(R,D); s.cate=nn.Embedding(1000,D); s.user=nn.Embedding(R,D)
        s.att=nn.Sequential(nn.Linear(8*D,80),nn.Sigmoid(),nn.Linear(80,40),nn.Sigmoid(),nn.Linear(40,1))
        s.mlp=nn.Sequential(nn.Linear(5*D,200),nn.PReLU(),nn.Linear(200,80),nn.PReLU(),nn.Linear(80,1))
    def forward(s,user,ti,tc,hi,hc,hlen):
        t=torch.cat([s.item(ti),s.cate(tc)],-1); h=torch.cat([s.item(hi),s.cate(hc)],-1)
        q=t.unsqueeze(1).expand_as(h)
        a=s.att(torch.cat([q,h,q-h,q*h],-1)).squeeze(-1)
        m=torch.arange(h.shape[1])[None,:]<hlen[:,None]
        a=torch.where(m,a,torch.full_like(a,-1e9)); a=torch.softmax(a*0.125,-1)
        p=(a.unsqueeze(1)@h).squeeze(1)
        return torch.sigmoid(s.mlp(torch.cat([s.user(user),t,p],-1)))
@job
def din():
    B=2; a=(torch.randint(0,50000,(B,)),torch.randint(0,50000,(B,)),torch.randint(0,1000,(B,)),torch.randint(0,50000,(B,50)),torch.randint(0,1000,(B,50)),torch.full((B,),50))
    n=["user","target_item","target_cate","hist_item","hist_cate","hist_len"]
    d=bd(*n,"prob"); d["hist_item"]={0:"batch",1:"hist"}; d["hist_cate"]={0:"batch",1:"hist"}
    exp("din",DIN(),a,n,["prob"],d)
@job
def xgb500():
    import xgboost as xgb
    from onnxmltools.convert import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    X=np.random.randn(20000,50).astype(np.float32); w=np.random.randn(50); y=((X@w+np.sin(3*X[:,0])*X[:,1]*3+np.random.randn(20000))>0).astype(int)
    c=xgb.XGBClassifier(n_estimators=500,max_depth=6,n_jobs=2,tree_method="hist"); c.fit(X,y)
    o=convert_xgboost(c,initial_types=[("x",FloatTensorType([None,50]))],target_opset=15)
    open(path("xgb500"),"wb").write(o.SerializeToString()); print("ok xgb500")
@job
def lgb500():
    import lightgbm as lgb
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType
    X=np.random.randn(20000,50).astype(np.float32); w=np.random.randn(50); y=X@w+np.sin(3*X[:,0])*X[:,1]*3
    c=lgb.LGBMRegressor(n_estimators=500,max_depth=6,num_leaves=64,verbose=-1,n_jobs=2); c.fit(X,y)
    o=convert_lightgbm(c,initial_types=[("x",FloatTensorType([None,50]))],target_opset=15)
    open(path("lgb500"),"wb").write(o.SerializeToString()); print("ok lgb500")
class WaveNet(nn.Module):
    def __init__(s,R=64,S=128,L=10,B=2):
        super().__init__(); s.inp=nn.Conv1d(1,R,1)
        s.f=nn.ModuleList(); s.g=nn.ModuleList(); s.r=nn.ModuleList(); s.k=nn.ModuleList(); s.d=[]
        for b in range(B):
            for l in range(L):
                d=2**l; s.d.append(d)
                s.f.append(nn.Conv1d(R,R,2,dilation=d)); s.g.append(nn.Conv1d(R,R,2,dilation=d)); s.r.append(nn.Conv1d(R,R,1)); s.k.append(nn.Conv1d(R,S,1))
        s.o1=nn.Conv1d(S,S,1); s.o2=nn.Conv1d(S,256,1)
    def forward(s,x):
        x=s.inp(x); sk=0
        for f,g,r,k,d in zip(s.f,s.g,s.r,s.k,s.d):
            p=F.pad(x,(d,0)); h=torch.tanh(f(p))*torch.sigmoid(g(p)); sk=sk+k(h); x=x+r(h)
        return s.o2(F.relu(s.o1(F.relu(sk))))
@job
def wavenet(): exp("wavenet",WaveNet(),(torch.randn(2,1,4000),),["audio"],["logits"],{"audio":{0:"batch",2:"time"},"logits":{0:"batch",2:"time"}})
class TacoEnc(nn.Module):
    def __init__(s):
        super().__init__(); s.e=nn.Embedding(148,512); s.c=nn.ModuleList([nn.Sequential(nn.Conv1d(512,512,5,padding=2),nn.BatchNorm1d(512),nn.ReLU()) for _ in range(3)]); s.l=nn.LSTM(512,256,batch_first=True,bidirectional=True)
    def forward(s,ids):
        x=s.e(ids).transpose(1,2)
        for c in s.c: x=c(x)
        return s.l(x.transpose(1,2))[0]
class TacoDec(nn.Module):
    # one Tacotron2 decoder step: prenet, attention LSTM, location-sensitive attention, decoder LSTM, projections
    def __init__(s):
        super().__init__(); s.p1=nn.Linear(80,256); s.p2=nn.Linear(256,256); s.ar=nn.LSTM(256+512,1024); s.dr=nn.LSTM(1024+512,1024)
        s.q=nn.Linear(1024,128,bias=False); s.lc=nn.Conv1d(2,32,31,padding=15,bias=False); s.ld=nn.Linear(32,128,bias=False); s.m=nn.Linear(512,128,bias=False); s.v=nn.Linear(128,1,bias=False); s.pr=nn.Linear(1536,80); s.g=nn.Linear(1536,1)
    def forward(s,mel,ah,ac,dh,dc,aw,awc,ctx,mem):
        x=F.relu(s.p2(F.relu(s.p1(mel))))
        o,(ah,ac)=s.ar(torch.cat([x,ctx],-1).unsqueeze(0),(ah,ac))
        ll=s.ld(s.lc(torch.stack([aw,awc],1)).transpose(1,2))
        e=s.v(torch.tanh(s.q(o[0]).unsqueeze(1)+ll+s.m(mem))).squeeze(-1)
        aw=torch.softmax(e,-1); ctx=(aw.unsqueeze(1)@mem).squeeze(1)
        o,(dh,dc)=s.dr(torch.cat([o[0],ctx],-1).unsqueeze(0),(dh,dc))
        z=torch.cat([o[0],ctx],-1)
        return s.pr(z),torch.sigmoid(s.g(z)),ah,ac,dh,dc,aw,awc+aw,ctx
@job
def taco_enc(): exp("taco_enc",TacoEnc(),(torch.randint(0,148,(2,100)),),["ids"],["mem"],seqdyn("ids","mem"))
@job
def taco_dec():
    B,T=2,100; z=lambda *a: torch.randn(*a)*0.1
    n=["mel","ah","ac","dh","dc","aw","awc","ctx","mem"]; o=["mel_out","gate","ah_o","ac_o","dh_o","dc_o","aw_o","awc_o","ctx_o"]
    d={}
    for k in n+o: d[k]={1:"batch"} if k[:2] in("ah","ac","dh","dc") else {0:"batch"}
    for k in ("aw","awc","aw_o","awc_o","mem"): d[k][1]="T"
    exp("taco_dec",TacoDec(),(z(B,80),z(1,B,1024),z(1,B,1024),z(1,B,1024),z(1,B,1024),z(B,T),z(B,T),z(B,512),z(B,T,512)),n,o,d)

def quantised(name, static):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
    source = {"resnet50_int8": "resnet50", "bert_base_int8": "bert_base"}[name]
    if not static:
        quantize_dynamic(path(source), path(name), weight_type=QuantType.QInt8); return
    class Reader(CalibrationDataReader):
        def __init__(s): s.it = iter([{"x": np.random.randn(4, 3, 224, 224).astype(np.float32)} for _ in range(4)])
        def get_next(s): return next(s.it, None)
    quantize_static(path(source), path(name), Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)
@job
def resnet50_int8(): quantised("resnet50_int8", True); print("ok resnet50_int8")
@job
def bert_base_int8(): quantised("bert_base_int8", False); print("ok bert_base_int8")

# --- inputs and reference answers -------------------------------------------------------------------------------------
rng = np.random.default_rng(0)
def ids(B,S,v=30000): return rng.integers(0,v,(B,S)).astype(np.int64)
f=lambda *s: rng.standard_normal(s).astype(np.float32)
bert=lambda B,S=128: {"input_ids":ids(B,S),"attention_mask":np.ones((B,S),np.int64),"token_type_ids":np.zeros((B,S),np.int64)}
img=lambda B: {"x":f(B,3,224,224)}
P = 128
G={ "mlp":lambda B:{"x":f(B,784)}, "lenet":lambda B:{"x":f(B,1,28,28)}, "resnet50":img,"mobilenet_v2":img,"efficientnet_b0":img,"vit_b_16":img,
 "bert_base":bert,"minilm_l6":bert,"distilbert":lambda B:{k:v for k,v in bert(B).items() if k!="token_type_ids"},
 "gpt2_prefill":lambda B:{"input_ids":ids(B,64,50000)},
 "gpt2_decode":lambda B:{"input_ids":ids(B,1,50000),**{f"past_{i//2}_{'kv'[i%2]}":f(B,12,P,64) for i in range(24)}},
 "yolov8n":lambda B:{"images":rng.random((B,3,640,640)).astype(np.float32)},
 "deepfm":lambda B:{"cat":ids(B,26,10000),"dense":rng.random((B,13)).astype(np.float32)},
 "din":lambda B:{"user":ids(1,B,50000)[0],"target_item":ids(1,B,50000)[0],"target_cate":ids(1,B,1000)[0],"hist_item":ids(B,50,50000),"hist_cate":ids(B,50,1000),"hist_len":np.full((B,),50,np.int64)},
 "xgb500":lambda B:{"x":f(B,50)},"lgb500":lambda B:{"x":f(B,50)},
 "wavenet":lambda B:{"audio":f(B,1,4000)},"taco_enc":lambda B:{"ids":ids(B,100,148)},
 "taco_dec":lambda B:{"mel":f(B,80),"ah":f(1,B,1024)*.1,"ac":f(1,B,1024)*.1,"dh":f(1,B,1024)*.1,"dc":f(1,B,1024)*.1,"aw":rng.random((B,100)).astype(np.float32)/100,"awc":rng.random((B,100)).astype(np.float32),"ctx":f(B,512)*.1,"mem":f(B,100,512)*.1}}
G["resnet50_int8"]=img; G["bert_base_int8"]=bert
BS={n:[1,8] for n in G}
for n in ("mlp","deepfm","din","xgb500","lgb500","taco_dec"): BS[n]=[1,8,32]
BS["mlp"]=[1,8,32,128]; 
for n in ("xgb500","lgb500","deepfm"): BS[n]=[1,8,32,256]

def record(name):
    import onnxruntime as ort
    options = ort.SessionOptions(); options.log_severity_level = 3
    session = ort.InferenceSession(path(name), options, providers=["CPUExecutionProvider"])
    for batch in BS[name]:
        feed = G[name](batch)
        folder = f"{OUT}/{name}/b{batch}"; os.makedirs(folder, exist_ok=True)
        for i, value in enumerate(session.get_inputs()):
            open(f"{folder}/input_{i}.pb", "wb").write(numpy_helper.from_array(np.ascontiguousarray(feed[value.name]), value.name).SerializeToString())
        for i, (value, out) in enumerate(zip(session.get_outputs(), session.run(None, {v.name: feed[v.name] for v in session.get_inputs()}))):
            if isinstance(out, list): continue  # a ZipMap: sequences of maps are not tensors
            open(f"{folder}/output_{i}.pb", "wb").write(numpy_helper.from_array(out, value.name).SerializeToString())

if __name__ == "__main__":
    parser = argparse.ArgumentParser(); parser.add_argument("names", nargs="*"); parser.add_argument("--out", default="models")
    args = parser.parse_args(); OUT = args.out
    for name in args.names or jobs:
        if os.path.exists(f"{OUT}/{name}/b{BS[name][-1]}"): continue
        try: jobs[name](); record(name)
        except Exception as error: print("FAIL", name, type(error).__name__, str(error)[:400], flush=True); traceback.print_exc(limit=3)
